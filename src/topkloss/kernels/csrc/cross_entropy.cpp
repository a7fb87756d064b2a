// Cross-entropy of many elements: the build for this processor, and its share of the elements for each thread.

#include "cross_entropy.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace topkloss {
namespace {

constexpr int64_t GRAIN = 1 << 15;  // logits that are worth a thread

struct Build {
  const char *vectors;
  const CrossEntropyKernels (*kernels)[4];
};

Build build_for_this_processor() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return {"avx512", cross_entropy_avx512};
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", cross_entropy_avx2};
  return {"", cross_entropy_native};
#else
  return {"native", cross_entropy_native};
#endif
}

const Build &build() {
  static const Build chosen = build_for_this_processor();
  return chosen;
}

// Of classes or of probabilities, for this type of logits.
const CrossEntropyKernels &kernels_for(const topkloss_logits &of) {
  return build().kernels[of.probabilities == nullptr ? 0 : 1][of.type];
}

int64_t tasks_for(int64_t numbers, int64_t threads) {
  return std::max<int64_t>(1, std::min(threads, numbers / GRAIN));
}

}  // namespace
}  // namespace topkloss

using namespace topkloss;

const char *topkloss_vectors() { return build().vectors; }

int topkloss_shares_openmp() { return shares_openmp() ? 1 : 0; }

int64_t topkloss_cross_entropy(const topkloss_logits *of, void *losses, void *scores) {
  const int64_t n = of->samples * of->positions, tasks = tasks_for(n * of->classes, of->threads);
  std::vector<int64_t> illegal(tasks, -1);
  for_each_task(tasks, [&](int64_t task) {
    const Part part = part_of(n, task, tasks);
    kernels_for(*of).losses(*of, part.first, part.last, losses, scores, illegal[task]);
  });
  for (const int64_t position : illegal) {
    if (position >= 0) return position;
  }
  return -1;
}

void topkloss_cross_entropy_gradient(const topkloss_logits *of, const void *grad_output, void *gradient) {
  const int64_t n = of->samples * of->positions, tasks = tasks_for(n * of->classes, of->threads);
  for_each_task(tasks, [&](int64_t task) {
    const Part part = part_of(n, task, tasks);
    kernels_for(*of).gradient(*of, part.first, part.last, grad_output, gradient);
  });
}
