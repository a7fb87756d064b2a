// Scores as integers in the same order.

#pragma once

#include <cstdint>
#include <cstring>

namespace topkloss {

// Keys are unsigned integers in the order of the scores; -0.0 has the key of 0.0.
template <typename Score>
struct Keys;

template <>
struct Keys<float> {
  using Key = uint32_t;
  using Signed = int32_t;
};

template <>
struct Keys<double> {
  using Key = uint64_t;
  using Signed = int64_t;
};

template <typename Score>
using KeyOf = typename Keys<Score>::Key;

template <typename Score>
constexpr int BITS = 8 * sizeof(Score);

template <typename Score>
inline KeyOf<Score> key_of(Score score) {
  using Key = KeyOf<Score>;
  const Score canonical = score + Score{0};
  Key bits;
  std::memcpy(&bits, &canonical, sizeof bits);
  const auto negative = static_cast<Key>(static_cast<typename Keys<Score>::Signed>(bits) >> (BITS<Score> - 1));
  return bits ^ (negative | Key{1} << (BITS<Score> - 1));
}

template <typename Score>
inline Score score_of(KeyOf<Score> key) {
  using Key = KeyOf<Score>;
  const Key top = Key{1} << (BITS<Score> - 1);
  const Key bits = key & top ? key ^ top : ~key;
  Score score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

}  // namespace topkloss
