// What counts on a line, and what each element of a stretch of it weighs.

#include "line.h"

#include <type_traits>
#include <vector>

#include "keys.h"

namespace topkloss {
namespace {

constexpr int LANES = 8;  // sums side by side

template <typename Score>
TOPKLOSS_FAST void count_block(const topkloss_line &line, int64_t first, int32_t size, topkloss_counted &counted) {
  alignas(64) double copy[BLOCK];
  const Score *const scores = static_cast<const Score *>(line.scores) + first;
  const uint8_t *const counts = line.counts == nullptr ? nullptr : line.counts + first;
  const double *const mass = masses_of(line, first, size, copy);
  int32_t nan = 0, number = 0, wrong = 0;
  double sum = 0;
  if (mass != nullptr) {
#pragma omp simd reduction(+ : sum, wrong) reduction(| : nan)
    for (int32_t i = 0; i < size; ++i) {
      sum += mass[i];
      wrong += !(mass[i] >= 0 && mass[i] <= std::numeric_limits<double>::max());
      nan |= mass[i] > 0 && scores[i] != scores[i];
    }
    for (int32_t i = 0; wrong > 0 && counted.wrong < 0; ++i) {
      if (!(mass[i] >= 0 && mass[i] <= std::numeric_limits<double>::max())) counted.wrong = first + i;
    }
    counted.mass += sum;
  } else if (counts != nullptr) {
    for (int32_t i = 0; i < size; ++i) {
      number += counts[i] != 0;
      nan |= counts[i] != 0 && scores[i] != scores[i];
    }
    counted.mass += number;
  } else {
    for (int32_t i = 0; i < size; ++i) nan |= scores[i] != scores[i];
    counted.mass += size;
  }
  counted.nan |= nan != 0;
}

// The mass above a score, and the lowest score above it.
struct Above {
  double mass = 0, lowest = std::numeric_limits<double>::infinity();
};

// The lowest of some scores that are above another one. Of their keys: compilers take no minimum of floats in vectors
// but by OpenMP's leave, and Clang begins that with the largest finite number.
template <typename Score>
TOPKLOSS_FAST Score lowest_above(const Score *scores, int32_t size, Score than) {
  const KeyOf<Score> infinite = key_of(std::numeric_limits<Score>::infinity());
  KeyOf<Score> lowest = infinite;
  for (int32_t i = 0; i < size; ++i) lowest = std::min(lowest, scores[i] > than ? key_of(scores[i]) : infinite);
  return score_of<Score>(lowest);
}

template <typename Score>
TOPKLOSS_FAST void above_block(const topkloss_line &line, int64_t first, int32_t size, double than, Above &above) {
  alignas(64) double copy_of_mass[BLOCK];
  alignas(64) Score copy[BLOCK];
  const double *const mass = masses_of(line, first, size, copy_of_mass);
  const Score *scores = scores_of(line, first, size, copy);
  const auto score = static_cast<Score>(than);
  int32_t number = 0;
  double sum = 0;
  if (mass == nullptr) {
    for (int32_t i = 0; i < size; ++i) number += scores[i] > score;
  } else {
    for (int32_t i = 0; i < size; ++i) copy[i] = mass[i] > 0 ? scores[i] : -std::numeric_limits<Score>::infinity();
    scores = copy;
#pragma omp simd reduction(+ : sum)
    for (int32_t i = 0; i < size; ++i) sum += scores[i] > score ? mass[i] : 0.0;
  }
  above.mass += sum + number;
  above.lowest = std::min(above.lowest, static_cast<double>(lowest_above(scores, size, score)));
}

template <typename Weight>
TOPKLOSS_FAST double sum_block(const Weight *weights, const Weight *losses, int32_t size) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int32_t i = 0; i < size; ++i) {
    const double loss = weights[i] != 0 ? static_cast<double>(losses[i]) : 0.0;
    sum += static_cast<double>(weights[i]) * loss;
  }
  return sum;
}

template <typename Score, typename Weight>
double sum_of(const topkloss_line &line, const topkloss_stretch &stretch, const Weight *losses) {
  std::vector<double> sums(tasks_of(line) * LANES);  // each in a line of the cache of its own
  for_each_block(line, [&](int64_t task, int64_t first, int32_t size) {
    alignas(64) Weight weights[BLOCK];
    weigh<Score>(line, stretch, first, size, weights);
    sums[task * LANES] += sum_block(weights, losses + first, size);
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

template <typename Score, typename Weight>
void write_weights(const topkloss_line &line, const topkloss_stretch &stretch, Weight *weights) {
  for_each_block(line, [&](int64_t, int64_t first, int32_t size) {
    weigh<Score>(line, stretch, first, size, weights + first);
  });
}

// Calls run with a null pointer to the type named.
template <typename Function>
auto with_type(int64_t type, Function &&run) {
  return type == TOPKLOSS_FLOAT64 ? run(static_cast<double *>(nullptr)) : run(static_cast<float *>(nullptr));
}

template <typename Pointer>
using Pointed = std::remove_pointer_t<Pointer>;

}  // namespace
}  // namespace topkloss

using namespace topkloss;

void topkloss_count(const topkloss_line *line, topkloss_counted *counted) {
  std::vector<topkloss_counted> parts(tasks_of(*line), {0, 0, -1});
  with_type(line->type, [&](auto score) {
    for_each_block(*line, [&](int64_t task, int64_t first, int32_t size) {
      count_block<Pointed<decltype(score)>>(*line, first, size, parts[task]);
    });
  });
  *counted = {0, 0, -1};
  for (const auto &part : parts) {
    counted->mass += part.mass;
    counted->nan |= part.nan;
    if (counted->wrong < 0) counted->wrong = part.wrong;
  }
}

void topkloss_above(const topkloss_line *line, double score, double out[2]) {
  std::vector<Above> parts(tasks_of(*line));
  with_type(line->type, [&](auto type) {
    for_each_block(*line, [&](int64_t task, int64_t first, int32_t size) {
      above_block<Pointed<decltype(type)>>(*line, first, size, score, parts[task]);
    });
  });
  Above all;
  for (const auto &part : parts) {
    all.mass += part.mass;
    all.lowest = std::min(all.lowest, part.lowest);
  }
  out[0] = all.mass;
  out[1] = all.lowest;
}

void topkloss_weights(const topkloss_line *line, const topkloss_stretch *stretch, int64_t type, void *weights) {
  with_type(line->type, [&](auto score) {
    with_type(type, [&](auto weight) {
      write_weights<Pointed<decltype(score)>>(*line, *stretch, static_cast<decltype(weight)>(weights));
    });
  });
}

double topkloss_weighted_sum(const topkloss_line *line, const topkloss_stretch *stretch, int64_t type,
                             const void *losses) {
  return with_type(line->type, [&](auto score) {
    return with_type(type, [&](auto weight) {
      return sum_of<Pointed<decltype(score)>>(*line, *stretch, static_cast<const Pointed<decltype(weight)> *>(losses));
    });
  });
}
