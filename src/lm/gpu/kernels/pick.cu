// The next token of each row, from its logits.
#include "common.cuh"

constexpr int WARPS = 16;
constexpr unsigned NONE = ~0u;

// e^x, as the CPU's passes compute it, operation by operation: none of them is joined with another.
static __device__ __forceinline__ float power(float x) {
  x = fminf(fmaxf(x, -87.0f), 88.0f);
  const float n = __fsub_rn(__fadd_rn(__fmul_rn(x, 1.44269504088896340736f), 12582912.0f), 12582912.0f);
  float r = __fsub_rn(x, __fmul_rn(n, 0.6933594f));
  r = __fsub_rn(r, __fmul_rn(n, -2.1219444e-4f));
  float p = 1.9875691e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3981999e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666666e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 0.5f);
  const float y = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
  return __fmul_rn(y, __int_as_float(((int)n + 127) << 23));
}

// Picks from row rows[b] of `logits` for each b: with `inverse` 0 the likeliest token, the first of several; else that where
// the sum of weights e^((x − the largest) · inverse), in the order of the tokens, is first above numbers[b] of the whole.
// NONE where a logit is not a number, or none is finite. A block for each b, of 512 threads.
KERNEL pick(const Number *logits, const unsigned *rows, const double *numbers, float inverse, unsigned *tokens, int count) {
  __shared__ float tops[WARPS];
  __shared__ int firsts[WARPS];
  __shared__ double sums[WARPS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Number *const mine = logits + (u64)rows[blockIdx.x] * count;
  // What a warp has: whole rows of 32.
  const int share = ((count + 32 * WARPS - 1) / (32 * WARPS)) * 32;
  const int begin = warp * share, end = min(count, begin + share);

  float top = -INFINITY;
  int first = count;
  bool broken = false;
  for (int i = begin + lane; i < end; i += 32) {
    const float x = wide(mine[i]);
    broken |= x != x;
    if (x > top) top = x, first = i;
  }
  if (broken) top = INFINITY;
  for (int with = 16; with; with /= 2) {
    const float other = __shfl_xor_sync(~0u, top, with);
    const int its = __shfl_xor_sync(~0u, first, with);
    if (other > top || (other == top && its < first)) top = other, first = its;
  }
  if (lane == 0) tops[warp] = top, firsts[warp] = first;
  __syncthreads();
  for (int w = 0; w < WARPS; w++)
    if (tops[w] > top || (tops[w] == top && firsts[w] < first)) top = tops[w], first = firsts[w];
  if (top == INFINITY || top == -INFINITY) {
    if (threadIdx.x == 0) tokens[blockIdx.x] = NONE;
    return;
  }
  if (inverse == 0.0f) {
    if (threadIdx.x == 0) tokens[blockIdx.x] = first;
    return;
  }

  const auto weight = [&](int i) { return (double)power(__fmul_rn(__fsub_rn(wide(mine[i]), top), inverse)); };
  double sum = 0.0;
  for (int i = begin + lane; i < end; i += 32) sum += weight(i);
  sum = warp_sum(sum);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  double total = 0.0, before = 0.0;
  for (int w = 0; w < WARPS; w++) total += sums[w];
  const double wanted = numbers[blockIdx.x] * total;
  // The warp in whose share the sum comes above what is wanted; the last that has one where rounding leaves a rest.
  int found = 0;
  for (; (found + 1) * share < count && before + sums[found] <= wanted; found++) before += sums[found];
  if (warp != found) return;
  for (int i = begin; i < end; i += 32) {
    double upto = i + lane < end ? weight(i + lane) : 0.0;
    for (int with = 1; with < 32; with *= 2) {
      const double left = __shfl_up_sync(~0u, upto, with);
      if (lane >= with) upto += left;
    }
    int at = i + lane < end && before + upto > wanted ? lane : 32;
    for (int with = 16; with; with /= 2) at = min(at, __shfl_xor_sync(~0u, at, with));
    if (at < 32) {
      if (lane == 0) tokens[blockIdx.x] = i + at;
      return;
    }
    before += __shfl_sync(~0u, upto, 31);
  }
  if (lane == 0) tokens[blockIdx.x] = end - 1;
}
