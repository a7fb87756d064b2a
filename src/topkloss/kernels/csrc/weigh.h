// What the elements of a block weigh, by the stretch of a line that is averaged.
//
// Part of every build of the cross-entropy: nothing of the standard library is used here, and each build has its own.

#pragma once

#include <stdint.h>

#include "topkloss.h"

// On x86 these kernels are only called where `topkloss_vectors` names what they are compiled for here.
#if defined(__x86_64__)
#define TOPKLOSS_FAST __attribute__((target("avx2,fma")))
#else
#define TOPKLOSS_FAST
#endif

namespace topkloss {
namespace {

constexpr int64_t BLOCK = 1024;  // elements that are read more than once while they are in the first cache

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

// What each would weigh if it counted and its mass were 1.
template <typename Score, typename Weight>
TOPKLOSS_FAST inline void weigh_each(const Score *scores, const topkloss_stretch &stretch, int32_t size,
                                     Weight *weights) {
  if (stretch.end != stretch.end) {
    for (int32_t i = 0; i < size; ++i) weights[i] = static_cast<Weight>(stretch.end);
    return;
  }
  const auto start = static_cast<Score>(stretch.start), end = static_cast<Score>(stretch.end);
  const auto at = [&](double part) { return static_cast<Weight>(part > 0 ? part * stretch.scale : 0.0); };
  const Weight whole = at(1), at_end = at(stretch.end_part), at_start = at(stretch.start_part);
  const Weight at_both = at(stretch.end_part < stretch.start_part ? stretch.end_part : stretch.start_part);
  if (start == static_cast<Score>(__builtin_inf()) && stretch.start_part == 1) {
    for (int32_t i = 0; i < size; ++i) weights[i] = scores[i] > end ? whole : (scores[i] == end ? at_end : Weight{0});
    return;
  }
  for (int32_t i = 0; i < size; ++i) {
    const Weight inside = scores[i] == end ? at_end : (scores[i] > end ? whole : Weight{0});
    const Weight border = scores[i] == end ? at_both : (scores[i] > end ? at_start : Weight{0});
    weights[i] = scores[i] < start ? inside : (scores[i] == start ? border : Weight{0});
  }
}

// What the elements of a block weigh.
template <typename Score, typename Weight>
TOPKLOSS_FAST void weigh(const topkloss_line &line, const topkloss_stretch &stretch, int64_t first, int32_t size,
                         Weight *weights) {
  const Score *const scores = static_cast<const Score *>(line.scores) + first;
  const uint8_t *const counts = line.counts == nullptr ? nullptr : line.counts + first;
  if (line.mass == nullptr) {
    weigh_each(scores, stretch, size, weights);
    if (counts == nullptr) return;
    for (int32_t i = 0; i < size; ++i) weights[i] = counts[i] ? weights[i] : Weight{0};
    return;
  }
  alignas(64) double copy[BLOCK], each[BLOCK];
  const double *const mass = masses_of(line, first, size, copy);
  weigh_each(scores, stretch, size, each);
  for (int32_t i = 0; i < size; ++i) {
    weights[i] = mass[i] > 0 && each[i] != 0 ? static_cast<Weight>(mass[i] * each[i]) : Weight{0};
  }
}

}  // namespace
}  // namespace topkloss
