// The exact k-th largest by mass, without a sort.
//
// Of equal masses: two pivots from a sample bracket the answer (Floyd and Rivest. Expected time bounds for selection.
// 1975); one read counts what lies above and at them and copies the few between, among which the answer is then found.
// Of other masses, and where the pivots missed: digit after digit of the answer's key, one histogram each.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "parallel.h"
#include "topkloss.h"

namespace topkloss {
namespace {

constexpr int DIGIT = 11;                       // bits that one histogram settles
constexpr int64_t BINS = int64_t{1} << DIGIT;   // of 8 bytes each: they fit into the first cache
constexpr int64_t GRAIN = 1 << 15;              // scores that are worth a thread
constexpr int64_t BLOCK = 4096;                 // scores that are read twice while they are in the first cache
constexpr int64_t SMALL = 2 * BLOCK;            // up to so many, a copy is partitioned
constexpr double DEVIATIONS = 3;                // between the rank and each pivot, at most

// A score, with the mass above it and the mass at it.
template <typename Score>
struct Found {
  Score score;
  double above, tied;
};

// What is to be ranked.
template <typename Score>
struct Ranked {
  const Score *scores;
  const double *mass;  // null = 1 each
  int64_t n;
  int64_t threads;

  int64_t tasks() const { return std::max<int64_t>(1, std::min(threads, n / GRAIN)); }
};

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

// Sorting by key is defined for NaN too, whose place nobody asks for.
template <typename Score>
void put_in_place(std::vector<Score> &scores, int64_t rank) {
  std::nth_element(scores.begin(), scores.begin() + rank, scores.end(),
                   [](Score a, Score b) { return key_of(a) > key_of(b); });
}

// Of equal masses, among scores that may be put in another order.
template <typename Score>
Found<Score> by_partition(std::vector<Score> &scores, double need) {
  const auto n = static_cast<int64_t>(scores.size());
  const int64_t rank = std::min(std::max<int64_t>(static_cast<int64_t>(std::ceil(need)), 1), n) - 1;
  put_in_place(scores, rank);
  Found<Score> found{scores[rank], 0, 0};
  for (const Score score : scores) {
    found.above += score > found.score;
    found.tied += score == found.score;
  }
  return found;
}

template <typename Score>
struct Pivots {
  Score low, high;
};

// Steps of about the golden ratio meet each place once, in step with no row or stripe of an image.
template <typename Score>
Pivots<Score> pivots(const Ranked<Score> &of, double need) {
  const double size = std::round(std::pow(static_cast<double>(of.n), 2.0 / 3.0));
  int64_t step = std::llround(static_cast<double>(of.n) * 0.6180339887498949);
  while (std::gcd(step, of.n) > 1) ++step;
  std::vector<Score> sample(static_cast<size_t>(size));
  int64_t place = 0;
  for (Score &score : sample) {
    score = of.scores[place];
    place += step;
    if (place >= of.n) place -= of.n;
  }
  const double share = need / static_cast<double>(of.n);
  const double margin = DEVIATIONS * std::sqrt(size * share * (1 - share)) + 1, last = size - 1;
  const auto lower = static_cast<int64_t>(std::min(share * size + margin, last));
  const auto higher = static_cast<int64_t>(std::max(share * size - margin, 0.0));
  put_in_place(sample, lower);
  const Score low = sample[lower];
  sample.resize(lower + 1);
  put_in_place(sample, higher);
  return {low, sample[higher]};
}

// How the scores lie to two pivots, and those between them, unless they are more than `room`.
template <typename Score>
struct Around {
  int64_t above = 0, at_high = 0, at_low = 0;
  std::vector<Score> between;
  bool overflowed = false;
};

template <typename Score>
void look_around(const Score *scores, Part part, Pivots<Score> pivot, int64_t room, Around<Score> &around) {
  around.between.resize(room + BLOCK);
  Score *const between = around.between.data();
  const Score low = pivot.low, high = pivot.high;
  int64_t kept = 0;
  for (int64_t begin = part.first; begin < part.last && !around.overflowed; begin += BLOCK) {
    const auto size = static_cast<int32_t>(std::min(BLOCK, part.last - begin));
    const Score *const block = scores + begin;
    int32_t above = 0, at_high = 0, at_low = 0;
    for (int32_t i = 0; i < size; ++i) {
      above += block[i] > high;
      at_high += block[i] == high;
      at_low += block[i] == low;
    }
    for (int32_t i = 0; i < size; ++i) {
      between[kept] = block[i];
      kept += (block[i] < high) & (block[i] > low);
    }
    around.above += above;
    around.at_high += at_high;
    around.at_low += at_low;
    around.overflowed = kept > room;
  }
  around.between.resize(kept);
}

// Of equal masses. False where the pivots do not bracket the answer.
template <typename Score>
bool by_pivots(const Ranked<Score> &of, double need, Found<Score> &found) {
  const Pivots<Score> pivot = pivots(of, need);
  const int64_t tasks = of.tasks();
  std::vector<Around<Score>> parts(tasks);
  for_each_task(tasks, [&](int64_t task) {
    const Part part = part_of(of.n, task, tasks);
    look_around(of.scores, part, pivot, (part.last - part.first) / 4, parts[task]);
  });
  Around<Score> all;
  for (const auto &part : parts) {
    if (part.overflowed) return false;
    all.above += part.above;
    all.at_high += part.at_high;
    all.at_low += part.at_low;
    all.between.insert(all.between.end(), part.between.begin(), part.between.end());
  }
  const auto above = static_cast<double>(all.above), with_high = above + static_cast<double>(all.at_high);
  if (above >= need) return false;
  if (with_high >= need) {
    found = {pivot.high, above, static_cast<double>(all.at_high)};
    return true;
  }
  const double with_between = with_high + static_cast<double>(all.between.size());
  if (with_between >= need) {
    found = by_partition(all.between, need - with_high);
    found.above += with_high;
    return true;
  }
  found = {pivot.low, with_between, static_cast<double>(all.at_low)};
  return with_between + found.tied >= need;
}

// The mass of each next digit among the scores whose key begins as settled: `prefix` above the bit `upper`.
template <typename Score>
void weigh_digits(const Ranked<Score> &of, Part part, KeyOf<Score> prefix, int upper, int lower, double *bins) {
  const bool all = upper == BITS<Score>;
  const KeyOf<Score> digit = (KeyOf<Score>{1} << (upper - lower)) - 1;
  for (int64_t i = part.first; i < part.last; ++i) {
    const KeyOf<Score> key = key_of(of.scores[i]);
    if (all || key >> upper == prefix) bins[key >> lower & digit] += of.mass == nullptr ? 1.0 : of.mass[i];
  }
}

// Of any masses. Rounding may leave less mass than is needed: then the lowest score that has any.
template <typename Score>
Found<Score> by_digits(const Ranked<Score> &of, double need) {
  KeyOf<Score> prefix = 0;
  double above = 0, tied = 0;
  const int64_t tasks = of.tasks();
  for (int upper = BITS<Score>, lower; upper > 0; upper = lower) {
    lower = std::max(upper - DIGIT, 0);
    std::vector<double> bins(tasks * BINS);
    for_each_task(tasks, [&](int64_t task) {
      weigh_digits(of, part_of(of.n, task, tasks), prefix, upper, lower, bins.data() + task * BINS);
    });
    for (int64_t i = BINS; i < tasks * BINS; ++i) bins[i % BINS] += bins[i];
    int64_t last = -1;
    double before = 0, sum = above;
    for (int64_t bin = BINS - 1; bin >= 0 && sum < need; --bin) {
      if (bins[bin] <= 0) continue;
      last = bin;
      before = sum;
      sum += bins[bin];
    }
    if (last < 0) return {-std::numeric_limits<Score>::infinity(), above, 0};
    above = before;
    tied = bins[last];
    prefix = prefix << (upper - lower) | static_cast<KeyOf<Score>>(last);
  }
  return {score_of<Score>(prefix), above, tied};
}

template <typename Score>
Found<Score> kth_largest(const Ranked<Score> &of, double need) {
  if (of.mass == nullptr && of.n > 0 && of.n <= SMALL) {
    std::vector<Score> copy(of.scores, of.scores + of.n);
    return by_partition(copy, need);
  }
  Found<Score> found;
  if (of.mass == nullptr && of.n > 0 && by_pivots(of, need, found)) return found;
  return by_digits(of, need);
}

template <typename Score>
void answer(const Ranked<Score> &of, double need, double out[3]) {
  const Found<Score> found = kth_largest(of, need);
  out[0] = found.score;
  out[1] = found.above;
  out[2] = found.tied;
}

}  // namespace
}  // namespace topkloss

void topkloss_kth_largest(int64_t type, const void *scores, const double *mass, int64_t n, double need,
                          int64_t threads, double out[3]) {
  using namespace topkloss;
  if (type == TOPKLOSS_FLOAT64) {
    answer(Ranked<double>{static_cast<const double *>(scores), mass, n, threads}, need, out);
  } else {
    answer(Ranked<float>{static_cast<const float *>(scores), mass, n, threads}, need, out);
  }
}
