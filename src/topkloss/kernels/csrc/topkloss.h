// The C interface of the native kernels: pointers, sizes and strides; no torch header, so one library serves every torch.
// What is computed, and why so, is in ../README.md. Nothing is checked here: the Python side has done so.

#ifndef TOPKLOSS_H
#define TOPKLOSS_H

#include <stdint.h>

#define TOPKLOSS_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// Of the logits and of their gradient. Scores, losses and class weights are double for double, float otherwise.
enum topkloss_type { TOPKLOSS_FLOAT32 = 0, TOPKLOSS_FLOAT64 = 1, TOPKLOSS_BFLOAT16 = 2, TOPKLOSS_FLOAT16 = 3 };

// Logits of `samples` times `places` elements and their targets. One of the two inner strides is 1.
struct topkloss_logits {
  const void *logits;
  int64_t type;
  int64_t samples, classes, places;
  int64_t sample_stride, class_stride, place_stride;  // in numbers, not bytes
  const int64_t *targets;                             // (samples, places), contiguous
  const uint8_t *counts;                              // the same, 0 = does not count; null = by ignore_index alone
  int64_t ignore_index;
  const void *class_weight;  // (classes), of the smoothed part; null = 1 each
  double smoothing;          // in [0, 1]
  int64_t threads;
};

// What a forward pass found: how many elements count, whether the score of one is NaN, and the first counted target
// that is no class (its place in `targets`; -1 = none; the rest is then not to be used).
struct topkloss_found {
  int64_t counted, nan, illegal;
};

// Which elements weigh how much: `scale` above the threshold, `scale` times `part` at it, nothing below; times their
// mass. A threshold that is NaN weighs all that counts NaN.
struct topkloss_rule {
  const double *mass;  // null = 1 each
  double threshold, part, scale;
};

// Whether this processor has what the cross-entropy needs to be fast: "avx512", "avx2", "native", or "" where not.
TOPKLOSS_API const char *topkloss_vectors(void);

// Whether threads are those of the OpenMP runtime that the process has loaded already (1) or own ones (0).
TOPKLOSS_API int topkloss_shares_openmp(void);

// Scores: -log p of the target, -inf where not counted. Losses: the same, smoothed; null where nothing is smoothed.
TOPKLOSS_API void topkloss_cross_entropy(const struct topkloss_logits *of, void *scores, void *losses,
                                         struct topkloss_found *found);

// The gradient of the weighted sum of the losses, in the logits' own type and strides; it may be the logits themselves.
TOPKLOSS_API void topkloss_cross_entropy_gradient(const struct topkloss_logits *of, const void *scores,
                                                  const struct topkloss_rule *rule, void *gradient);

// The sum of weights times losses.
TOPKLOSS_API double topkloss_weighted_sum(int64_t type, const void *scores, const void *losses, int64_t n,
                                          const struct topkloss_rule *rule, int64_t threads);

// The largest score t such that what is >= t holds the needed mass; out: t, the mass above it, the mass at it.
TOPKLOSS_API void topkloss_kth_largest(int64_t type, const void *scores, const double *mass, int64_t n, double need,
                                       int64_t threads, double out[3]);

#ifdef __cplusplus
}
#endif

#endif
