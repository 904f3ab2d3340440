// An optimiser's update in one pass, and the squares of a gradient. The gradient is of `Number`; parameter and moments are
// f32.
#include "common.cuh"

// As `torch.optim.AdamW` orders it. `copy` may be null: the parameter, rounded.
KERNEL adamw(const Number *gradient, float *parameter, float *first, float *second, __nv_bfloat16 *copy, u64 count,
             float scale, float size, float keep, float new_first, float second_kept, float new_second, float root,
             float eps) {
  EACH(i, count) {
    float g = wide(gradient[i]) * scale;
    float m = first[i], v = second[i];
    m += (g - m) * new_first;
    v = v * second_kept + g * g * new_second;
    float p = parameter[i] * keep - size * (m / (sqrtf(v) / root + eps));
    first[i] = m;
    second[i] = v;
    parameter[i] = p;
    if (copy) copy[i] = __float2bfloat16(p);
  }
}

// As `torch.optim.RMSprop` orders it: no momentum, not centred.
KERNEL rmsprop(const Number *gradient, float *parameter, float *second, __nv_bfloat16 *copy, u64 count, float scale,
               float size, float pull, float second_kept, float new_second, float eps) {
  EACH(i, count) {
    float p = parameter[i], g = wide(gradient[i]) * scale + p * pull;
    float v = second[i] * second_kept + g * g * new_second;
    p -= size * (g / (sqrtf(v) + eps));
    second[i] = v;
    parameter[i] = p;
    if (copy) copy[i] = __float2bfloat16(p);
  }
}

// The sum of squares that each block sees: (gridDim.x).
KERNEL squares(const Number *numbers, double *sums, u64 count) {
  double sum = 0;
  EACH(i, count) {
    double x = wide(numbers[i]);
    sum += x * x;
  }
  sum = row_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
