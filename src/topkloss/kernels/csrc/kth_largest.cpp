// The exact k-th largest by mass, without a sort.
//
// Two pivots from a sample bracket the answer (Floyd and Rivest. Expected time bounds for selection. 1975); one read
// weighs what lies above and at them and copies the few between, among which the answer is then found. Where the pivots
// missed: digit after digit of the answer's key, one histogram each.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "keys.h"
#include "line.h"

namespace topkloss {
namespace {

constexpr int DIGIT = 11;                      // bits that one histogram settles
constexpr int64_t BINS = int64_t{1} << DIGIT;  // of 8 bytes each: they fit into the first cache
constexpr int64_t SMALL = 1 << 12;             // up to so many, no sample is drawn
constexpr int64_t FEW = 1 << 8;                // up to so many are partitioned
constexpr double DEVIATIONS = 3;               // between the rank and each pivot, at most

// A score, with the mass above it and the mass at it.
template <typename Score>
struct Found {
  Score score;
  double above, tied;
};

// The key of the given rank, the largest being 0, among keys that may be put in another order: those of the same first
// bits are counted, and of these the ones that may be it are kept, until they are few.
template <typename Key>
TOPKLOSS_FAST Key select(Key *keys, int64_t n, int64_t rank) {
  while (n > FEW) {
    Key low = keys[0], high = keys[0];
    for (int64_t i = 0; i < n; ++i) {
      low = std::min(low, keys[i]);
      high = std::max(high, keys[i]);
    }
    int shift = 0;
    while (((high - low) >> shift) >= static_cast<Key>(BINS)) ++shift;
    uint32_t bins[BINS] = {};
    for (int64_t i = 0; i < n; ++i) ++bins[(keys[i] - low) >> shift];
    auto bin = static_cast<Key>((high - low) >> shift);
    for (; rank >= bins[bin]; --bin) rank -= bins[bin];
    if (shift == 0) return low + bin;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Key key = keys[i];
      keys[kept] = key;
      kept += (key - low) >> shift == bin;
    }
    n = kept;
  }
  std::nth_element(keys, keys + rank, keys + n, [](Key a, Key b) { return a > b; });
  return keys[rank];
}

template <typename Score>
std::vector<KeyOf<Score>> keys_of(const Score *scores, int64_t n) {
  std::vector<KeyOf<Score>> keys(n);
  for (int64_t i = 0; i < n; ++i) keys[i] = key_of(scores[i]);
  return keys;
}

// Of equal masses, among scores as they are.
template <typename Score>
TOPKLOSS_FAST Found<Score> among(const Score *scores, int64_t n, double need) {
  const int64_t rank = std::min(std::max<int64_t>(static_cast<int64_t>(std::ceil(need)), 1), n) - 1;
  auto keys = keys_of(scores, n);
  const Score score = score_of<Score>(select(keys.data(), n, rank));
  int64_t above = 0, tied = 0;
  for (int64_t i = 0; i < n; ++i) {
    above += scores[i] > score;
    tied += scores[i] == score;
  }
  return {score, static_cast<double>(above), static_cast<double>(tied)};
}

// The mass of each next digit among the scores whose key begins as settled: `prefix` above the bit `upper`.
template <typename Score>
void weigh_digits(const Score *scores, const double *mass, int32_t size, KeyOf<Score> prefix, int upper, int lower,
                  double *bins) {
  const bool all = upper == BITS<Score>;
  const KeyOf<Score> digit = (KeyOf<Score>{1} << (upper - lower)) - 1;
  for (int32_t i = 0; i < size; ++i) {
    const KeyOf<Score> key = key_of(scores[i]);
    if (all || key >> upper == prefix) bins[key >> lower & digit] += mass == nullptr ? 1.0 : mass[i];
  }
}

// Of any masses. Rounding may leave less mass than is needed: then the lowest score that has any.
template <typename Score>
Found<Score> by_digits(const topkloss_line &line, double need) {
  KeyOf<Score> prefix = 0;
  double above = 0, tied = 0;
  const int64_t tasks = tasks_of(line);
  for (int upper = BITS<Score>, lower; upper > 0; upper = lower) {
    lower = std::max(upper - DIGIT, 0);
    std::vector<double> bins(tasks * BINS);
    for_each_block(line, [&](int64_t task, int64_t first, int32_t size) {
      Score copy[BLOCK];
      double copy_of_mass[BLOCK];
      const double *const mass = masses_of(line, first, size, copy_of_mass);
      weigh_digits(scores_of(line, first, size, copy), mass, size, prefix, upper, lower, bins.data() + task * BINS);
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

// A line of a few elements, on one thread.
template <typename Score>
topkloss_line line_of(const std::vector<Score> &scores, const std::vector<double> &mass) {
  constexpr int64_t type = sizeof(Score) == sizeof(double) ? TOPKLOSS_FLOAT64 : TOPKLOSS_FLOAT32;
  return {scores.data(), type, nullptr, mass.data(), TOPKLOSS_FLOAT64, static_cast<int64_t>(scores.size()), 1};
}

template <typename Score>
struct Pivots {
  Score low, high;
};

// Some elements of a line, and their mass where it is not 1 each.
template <typename Score>
struct Elements {
  std::vector<Score> scores;
  std::vector<double> mass;
};

// Steps of about the golden ratio meet each place once, in step with no row or stripe of an image.
template <typename Score>
Elements<Score> sample_of(const topkloss_line &line) {
  const auto size = static_cast<size_t>(std::round(std::pow(static_cast<double>(line.n), 2.0 / 3.0)));
  int64_t step = std::llround(static_cast<double>(line.n) * 0.6180339887498949);
  while (std::gcd(step, line.n) > 1) ++step;
  Elements<Score> sample{std::vector<Score>(size), std::vector<double>(line.mass == nullptr ? 0 : size)};
  const auto *const scores = static_cast<const Score *>(line.scores);
  int64_t place = 0;
  double copy;
  for (size_t i = 0; i < size; ++i) {
    const bool counts = line.counts == nullptr || line.counts[place];
    sample.scores[i] = counts ? scores[place] : -std::numeric_limits<Score>::infinity();
    if (line.mass != nullptr) sample.mass[i] = *masses_of(line, place, 1, &copy);
    place += step;
    if (place >= line.n) place -= line.n;
  }
  return sample;
}

// Around the needed mass of a line, which the sample stands for; infinite where it does not reach so far.
template <typename Score>
Pivots<Score> pivots(const topkloss_line &line, double need) {
  constexpr Score infinity = std::numeric_limits<Score>::infinity();
  const Elements<Score> sample = sample_of<Score>(line);
  const auto size = static_cast<double>(sample.scores.size());
  const auto of_squares = [](double sum, double mass) { return sum + mass * mass; };
  const double total = line.mass == nullptr ? size : std::accumulate(sample.mass.begin(), sample.mass.end(), 0.0);
  const double squares = line.mass == nullptr
                             ? size
                             : std::accumulate(sample.mass.begin(), sample.mass.end(), 0.0, of_squares);
  const double middle = need / static_cast<double>(line.n) * size, share = std::min(middle / total, 1.0);
  const double variance = squares * share - middle * middle / size;
  const double margin = DEVIATIONS * std::sqrt(std::max(variance, 0.0)) + total / size;
  const double before = middle - margin, behind = middle + margin;
  if (line.mass != nullptr) {
    const topkloss_line own = line_of(sample.scores, sample.mass);
    return {behind < total ? by_digits<Score>(own, behind).score : -infinity,
            before > 0 ? by_digits<Score>(own, before).score : infinity};
  }
  const auto n = static_cast<int64_t>(sample.scores.size());
  const auto at = [&](double rank) {
    auto keys = keys_of(sample.scores.data(), n);
    return score_of<Score>(select(keys.data(), n, static_cast<int64_t>(rank)));
  };
  return {behind < size ? at(behind) : -infinity, before > 0 ? at(before) : infinity};
}

// Which lanes of eight lie between the pivots: a bit each.
#if defined(__x86_64__)
TOPKLOSS_FAST inline uint32_t between(const float *scores, Pivots<float> pivot) {
  const __m256 x = _mm256_loadu_ps(scores);
  const __m256 low = _mm256_cmp_ps(x, _mm256_set1_ps(pivot.low), _CMP_GT_OQ);
  return _mm256_movemask_ps(_mm256_and_ps(low, _mm256_cmp_ps(x, _mm256_set1_ps(pivot.high), _CMP_LT_OQ)));
}

TOPKLOSS_FAST inline uint32_t between(const double *scores, Pivots<double> pivot) {
  uint32_t lanes = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256d x = _mm256_loadu_pd(scores + 4 * half);
    const __m256d low = _mm256_cmp_pd(x, _mm256_set1_pd(pivot.low), _CMP_GT_OQ);
    const __m256d both = _mm256_and_pd(low, _mm256_cmp_pd(x, _mm256_set1_pd(pivot.high), _CMP_LT_OQ));
    lanes |= static_cast<uint32_t>(_mm256_movemask_pd(both)) << (4 * half);
  }
  return lanes;
}
#else
template <typename Score>
inline uint32_t between(const Score *scores, Pivots<Score> pivot) {
  uint32_t lanes = 0;
  for (int i = 0; i < 8; ++i) lanes |= static_cast<uint32_t>((scores[i] < pivot.high) & (scores[i] > pivot.low)) << i;
  return lanes;
}
#endif

// The places of a block that lie between the pivots, and how many they are.
template <typename Score>
TOPKLOSS_FAST int32_t places_between(const Score *scores, int32_t size, Pivots<Score> pivot, int16_t *places) {
  int32_t number = 0, i = 0;
  for (; i + 8 <= size; i += 8) {
    for (uint32_t lanes = between(scores + i, pivot); lanes != 0; lanes &= lanes - 1) {
      places[number++] = static_cast<int16_t>(i + __builtin_ctz(lanes));
    }
  }
  for (; i < size; ++i) {
    places[number] = static_cast<int16_t>(i);
    number += (scores[i] < pivot.high) & (scores[i] > pivot.low);
  }
  return number;
}

// How the mass lies to two pivots, and what is between them, unless it is more than there is room for.
template <typename Score>
struct Around {
  double above = 0, at_high = 0, at_low = 0;
  Elements<Score> between;
  bool overflowed = false;
};

template <typename Score>
TOPKLOSS_FAST void weigh_around(const Score *scores, const double *mass, int32_t size, Pivots<Score> pivot,
                                Around<Score> &around) {
  const Score low = pivot.low, high = pivot.high;
  if (mass == nullptr) {
    typename Keys<Score>::Signed above = 0, at_high = 0, at_low = 0;
    for (int32_t i = 0; i < size; ++i) {
      above += scores[i] > high;
      at_high += scores[i] == high;
      at_low += scores[i] == low;
    }
    around.above += static_cast<double>(above);
    around.at_high += static_cast<double>(at_high);
    around.at_low += static_cast<double>(at_low);
    return;
  }
  double above = 0, at_high = 0, at_low = 0;
#pragma omp simd reduction(+ : above, at_high, at_low)
  for (int32_t i = 0; i < size; ++i) {
    above += scores[i] > high ? mass[i] : 0.0;
    at_high += scores[i] == high ? mass[i] : 0.0;
    at_low += scores[i] == low ? mass[i] : 0.0;
  }
  around.above += above;
  around.at_high += at_high;
  around.at_low += at_low;
}

template <typename Score>
void look_around(const topkloss_line &line, Part part, Pivots<Score> pivot, Around<Score> &around) {
  const auto room = static_cast<size_t>((part.last - part.first) / 4 + BLOCK);
  Score copy[BLOCK];
  double copy_of_mass[BLOCK];
  int16_t places[BLOCK];
  auto &[scores_between, mass_between] = around.between;
  for (int64_t first = part.first; first < part.last && !around.overflowed; first += BLOCK) {
    const auto size = static_cast<int32_t>(std::min(BLOCK, part.last - first));
    const Score *const scores = scores_of(line, first, size, copy);
    const double *const mass = masses_of(line, first, size, copy_of_mass);
    weigh_around(scores, mass, size, pivot, around);
    const int32_t number = places_between(scores, size, pivot, places);
    for (int32_t i = 0; i < number; ++i) scores_between.push_back(scores[places[i]]);
    for (int32_t i = 0; i < number && mass != nullptr; ++i) mass_between.push_back(mass[places[i]]);
    around.overflowed = scores_between.size() > room;
  }
}

// False where the pivots do not bracket the answer.
template <typename Score>
bool by_pivots(const topkloss_line &line, double need, Found<Score> &found) {
  const Pivots<Score> pivot = pivots<Score>(line, need);
  const int64_t tasks = tasks_of(line);
  std::vector<Around<Score>> parts(tasks);
  for_each_task(tasks, [&](int64_t task) { look_around(line, part_of(line.n, task, tasks), pivot, parts[task]); });
  Around<Score> &all = parts[0];
  for (int64_t task = 0; task < tasks; ++task) {
    const Around<Score> &part = parts[task];
    if (part.overflowed) return false;
    if (task == 0) continue;
    all.above += part.above;
    all.at_high += part.at_high;
    all.at_low += part.at_low;
    all.between.scores.insert(all.between.scores.end(), part.between.scores.begin(), part.between.scores.end());
    all.between.mass.insert(all.between.mass.end(), part.between.mass.begin(), part.between.mass.end());
  }
  const auto &[scores, mass] = all.between;
  const double with_high = all.above + all.at_high;
  if (all.above >= need) return false;
  if (with_high >= need) {
    found = {pivot.high, all.above, all.at_high};
    return true;
  }
  const auto n = static_cast<int64_t>(scores.size());
  const double inside = mass.empty() ? static_cast<double>(n) : std::accumulate(mass.begin(), mass.end(), 0.0);
  if (with_high + inside >= need) {
    found = mass.empty() ? among(scores.data(), n, need - with_high)
                         : by_digits<Score>(line_of(scores, mass), need - with_high);
    found.above += with_high;
    return true;
  }
  found = {pivot.low, with_high + inside, all.at_low};
  return with_high + inside + found.tied >= need;
}

template <typename Score>
void answer(const topkloss_line &line, double need, double out[3]) {
  Found<Score> found{-std::numeric_limits<Score>::infinity(), 0, 0};
  if (line.n > 0 && line.n <= SMALL && line.mass == nullptr) {
    Score copy[SMALL];
    found = among(scores_of(line, 0, static_cast<int32_t>(line.n), copy), line.n, need);
  } else if (line.n <= SMALL || !by_pivots(line, need, found)) {
    found = by_digits<Score>(line, need);
  }
  out[0] = found.score;
  out[1] = found.above;
  out[2] = found.tied;
}

}  // namespace
}  // namespace topkloss

void topkloss_kth_largest(const topkloss_line *line, double need, double out[3]) {
  using namespace topkloss;
  if (line->type == TOPKLOSS_FLOAT64) {
    answer<double>(*line, need, out);
  } else {
    answer<float>(*line, need, out);
  }
}
