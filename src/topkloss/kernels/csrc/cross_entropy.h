// The cross-entropy of a range of elements, compiled once for each set of vector instructions.

#pragma once

#include "topkloss.h"

namespace topkloss {

// Elements are numbered sample by sample; a range is [first, last).
struct CrossEntropyKernels {
  void (*losses)(const topkloss_logits &of, int64_t first, int64_t last, void *losses, void *scores, int64_t &illegal);
  void (*gradient)(const topkloss_logits &of, int64_t first, int64_t last, const void *grad_output, void *gradient);
};

// One table for each build: of classes and of probabilities, each indexed by the type of the logits.
extern const CrossEntropyKernels cross_entropy_avx512[2][4];
extern const CrossEntropyKernels cross_entropy_avx2[2][4];
extern const CrossEntropyKernels cross_entropy_native[2][4];

}  // namespace topkloss
