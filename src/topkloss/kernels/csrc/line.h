// The elements of a line, a block of them at a time.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "parallel.h"
#include "topkloss.h"

// On x86 these kernels are only called where `topkloss_vectors` names what they are compiled for here.
#if defined(__x86_64__)
#define TOPKLOSS_FAST __attribute__((target("avx2,fma")))
#else
#define TOPKLOSS_FAST
#endif

namespace topkloss {

constexpr int64_t GRAIN = 1 << 15;  // elements that are worth a thread
constexpr int64_t BLOCK = 1024;  // elements that are read more than once while they are in the first cache

inline int64_t tasks_of(const topkloss_line &line) {
  return std::max<int64_t>(1, std::min(line.threads, line.n / GRAIN));
}

// Calls run(task, first, size) for each block of each task, on as many threads as there are tasks.
template <typename Function>
void for_each_block(const topkloss_line &line, Function &&run) {
  const int64_t tasks = tasks_of(line);
  for_each_task(tasks, [&](int64_t task) {
    const Part part = part_of(line.n, task, tasks);
    for (int64_t first = part.first; first < part.last; first += BLOCK) {
      run(task, first, static_cast<int32_t>(std::min(BLOCK, part.last - first)));
    }
  });
}

template <typename Mass>
TOPKLOSS_FAST inline void widen(const Mass *mass, const uint8_t *counts, int32_t size, double *copy) {
  if (counts == nullptr) {
    for (int32_t i = 0; i < size; ++i) copy[i] = static_cast<double>(mass[i]);
  } else {
    for (int32_t i = 0; i < size; ++i) copy[i] = counts[i] ? static_cast<double>(mass[i]) : 0.0;
  }
}

// The masses of a block, 0 where the mask is 0; copied only where need be. Null where each is 1.
TOPKLOSS_FAST inline const double *masses_of(const topkloss_line &line, int64_t first, int32_t size, double *copy) {
  if (line.mass == nullptr) return nullptr;
  const uint8_t *const counts = line.counts == nullptr ? nullptr : line.counts + first;
  if (line.mass_type == TOPKLOSS_FLOAT32) {
    widen(static_cast<const float *>(line.mass) + first, counts, size, copy);
    return copy;
  }
  const double *const mass = static_cast<const double *>(line.mass) + first;
  if (counts == nullptr) return mass;
  widen(mass, counts, size, copy);
  return copy;
}

// The scores of a block, -inf where the mask is 0; copied only where there is one.
template <typename Score>
TOPKLOSS_FAST inline const Score *scores_of(const topkloss_line &line, int64_t first, int32_t size, Score *copy) {
  const Score *const scores = static_cast<const Score *>(line.scores) + first;
  if (line.counts == nullptr) return scores;
  const uint8_t *const counts = line.counts + first;
  for (int32_t i = 0; i < size; ++i) copy[i] = counts[i] ? scores[i] : -std::numeric_limits<Score>::infinity();
  return copy;
}

}  // namespace topkloss
