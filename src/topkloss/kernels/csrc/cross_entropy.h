// The cross-entropy of a range of elements, compiled once for each set of vector instructions.

#pragma once

#include "topkloss.h"

namespace topkloss {

// Elements are numbered sample by sample; a range is [first, last).
struct CrossEntropyKernels {
  void (*scores)(const topkloss_logits &of, int64_t first, int64_t last, void *scores, void *losses,
                 topkloss_found &found);
  void (*gradient)(const topkloss_logits &of, int64_t first, int64_t last, const void *scores,
                   const topkloss_rule &rule, void *gradient);
};

// One table for each build, indexed by the type of the logits.
extern const CrossEntropyKernels cross_entropy_avx512[4];
extern const CrossEntropyKernels cross_entropy_avx2[4];
extern const CrossEntropyKernels cross_entropy_native[4];

namespace {  // a copy for each build: one that they share would be linked from any of them

// What an element weighs by the rule; 0 where it does not count, whose score is -inf.
template <typename Real>
inline Real weight_of(const topkloss_rule &rule, Real score, int64_t element) {
  const auto threshold = static_cast<Real>(rule.threshold);
  const double share = score > threshold ? 1.0 : (score == threshold ? rule.part : 0.0);
  if (score == -__builtin_inf() || (share == 0.0 && threshold == threshold)) return 0;
  const double mass = rule.mass == nullptr ? 1.0 : rule.mass[element];
  return static_cast<Real>(threshold == threshold ? rule.scale * share * mass : __builtin_nan(""));
}

}  // namespace

}  // namespace topkloss
