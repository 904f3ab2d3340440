// Rows over their root mean square, times a weight; and the way back.
#include "common.cuh"

// N numbers at a time; `row` is one that there is.
template <int N>
static __device__ void norm_row(const Number *x, const Number *change, Number *sum, const Number *weight, Number *out,
                                unsigned width, float eps, bool there) {
  float squares = 0;
  for (unsigned i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    Pack<Number, N> a = read<N>(x + i);
    if (change) {
      Pack<Number, N> b = read<N>(change + i);
      for (int k = 0; k < N; k++) set(a.at[k], wide(a.at[k]) + wide(b.at[k]));
      if (there) write<N>(sum + i, a);
    }
    for (int k = 0; k < N; k++) squares += wide(a.at[k]) * wide(a.at[k]);
  }
  float inverse = rsqrtf(row_sum(squares) / width + eps);
  if (!there) return;
  // Each thread reads what it wrote itself.
  const Number *from = change ? sum : x;
  for (unsigned i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    Pack<Number, N> a = read<N>(from + i), w = read<N>(weight + i);
    for (int k = 0; k < N; k++) set(a.at[k], wide(a.at[k]) * inverse * wide(w.at[k]));
    write<N>(out + i, a);
  }
}

// (rows, width) to the same. With `change`, of x + change, which goes into `sum`. A row for each threadIdx.y.
KERNEL rms_norm(const Number *x, const Number *change, Number *sum, const Number *weight, Number *out, u64 rows,
                unsigned width, float eps) {
  u64 row = blockIdx.x * (u64)blockDim.y + threadIdx.y;
  bool there = row < rows;
  u64 at = (there ? row : 0) * width;
  const Number *mine = change ? change + at : nullptr;
  bool packs = width % WIDE == 0 && aligned(x) && aligned(change) && aligned(sum) && aligned(weight) && aligned(out);
  if (packs)
    norm_row<WIDE>(x + at, mine, sum + at, weight, out + at, width, eps, there);
  else
    norm_row<1>(x + at, mine, sum + at, weight, out + at, width, eps, there);
}

template <int N>
static __device__ void norm_back(const Number *x, const Number *weight, const Number *gradient, const Number *residual,
                                 Number *out, float *to_weight, unsigned width, float eps, bool there) {
  float squares = 0, along = 0;
  for (unsigned i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    Pack<Number, N> a = read<N>(x + i), w = read<N>(weight + i), g = read<N>(gradient + i);
    for (int k = 0; k < N; k++) {
      squares += wide(a.at[k]) * wide(a.at[k]);
      along += wide(g.at[k]) * wide(w.at[k]) * wide(a.at[k]);
    }
  }
  float inverse = rsqrtf(row_sum(squares) / width + eps);
  along = row_sum(along) * inverse / width;
  if (!there) return;
  for (unsigned i = threadIdx.x * N; i < width; i += blockDim.x * N) {
    Pack<Number, N> a = read<N>(x + i), w = read<N>(weight + i), g = read<N>(gradient + i), r;
    if (residual) r = read<N>(residual + i);
    for (int k = 0; k < N; k++) {
      float normed = wide(a.at[k]) * inverse, slope = wide(g.at[k]);
      // Neighbours in one place each: no two threads of a warp want the same bank.
      if (to_weight) to_weight[k * (width / N) + i / N] += slope * normed;
      set(a.at[k], (slope * wide(w.at[k]) - normed * along) * inverse + (residual ? wide(r.at[k]) : 0.0f));
    }
    write<N>(out + i, a);
  }
}

// The gradient to x from that to the result, plus `residual` if there is one. With `parts` (gridDim.x, width), also this
// block's part of the gradient to the weight; blockDim.y · width f32 of shared memory are for that.
KERNEL rms_norm_back(const Number *x, const Number *weight, const Number *gradient, const Number *residual, Number *out,
                     float *parts, u64 rows, unsigned width, float eps) {
  DYNAMIC_SHARED(float, sums);
  float *mine = parts ? sums + threadIdx.y * width : nullptr;
  unsigned thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  if (parts) {
    for (unsigned i = thread; i < blockDim.y * width; i += threads) sums[i] = 0;
    __syncthreads();
  }
  bool packs = width % WIDE == 0 && aligned(x) && aligned(weight) && aligned(gradient) && aligned(residual) && aligned(out);
  for (u64 first = blockIdx.x * (u64)blockDim.y; first < rows; first += gridDim.x * (u64)blockDim.y) {
    u64 row = first + threadIdx.y;
    bool there = row < rows;
    u64 at = (there ? row : 0) * width;
    const Number *added = residual ? residual + at : nullptr;
    if (packs)
      norm_back<WIDE>(x + at, weight, gradient + at, added, out + at, mine, width, eps, there);
    else
      norm_back<1>(x + at, weight, gradient + at, added, out + at, mine, width, eps, there);
  }
  if (!parts) return;
  __syncthreads();
  unsigned at_once = packs ? WIDE : 1;
  for (unsigned i = thread; i < width; i += threads) {
    unsigned at = i % at_once * (width / at_once) + i / at_once;
    float sum = 0;
    for (unsigned y = 0; y < blockDim.y; y++) sum += sums[y * width + at];
    parts[blockIdx.x * (u64)width + i] = sum;
  }
}

// The sum of rows (rows, width) of f32. Threads (32, 8).
KERNEL sum_rows(const float *parts, Number *out, unsigned rows, unsigned width) {
  __shared__ float sums[8][32];
  unsigned column = blockIdx.x * 32 + threadIdx.x;
  float sum = 0;
  if (column < width)
    for (unsigned row = threadIdx.y; row < rows; row += 8) sum += parts[row * (u64)width + column];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || column >= width) return;
  for (unsigned y = 1; y < 8; y++) sum += sums[y][threadIdx.x];
  set(out[column], sum);
}
