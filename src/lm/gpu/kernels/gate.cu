// silu(gate) · up, and the way back.
#include "common.cuh"

static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <int N>
static __device__ void gated(const Number *gate, const Number *up, Number *out, u64 rows, unsigned width, u64 stride) {
  for (u64 row = blockIdx.y; row < rows; row += gridDim.y)
    for (unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) * N; i < width; i += gridDim.x * blockDim.x * N) {
      Pack<Number, N> g = read<N>(gate + row * stride + i), u = read<N>(up + row * stride + i);
      for (int k = 0; k < N; k++) {
        float x = wide(g.at[k]);
        set(g.at[k], x * sigmoid(x) * wide(u.at[k]));
      }
      write<N>(out + row * width + i, g);
    }
}

// Rows of gate and up begin at row · stride, those of the result lie without gaps.
KERNEL swiglu(const Number *gate, const Number *up, Number *out, u64 rows, unsigned width, u64 stride) {
  if (width % WIDE == 0 && stride % WIDE == 0 && aligned(gate) && aligned(up) && aligned(out))
    gated<WIDE>(gate, up, out, rows, width, stride);
  else
    gated<1>(gate, up, out, rows, width, stride);
}

template <int N>
static __device__ void gated_back(const Number *gate, const Number *up, const Number *gradient, Number *to_gate,
                                  Number *to_up, u64 rows, unsigned width, u64 stride) {
  for (u64 row = blockIdx.y; row < rows; row += gridDim.y)
    for (unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) * N; i < width; i += gridDim.x * blockDim.x * N) {
      Pack<Number, N> g = read<N>(gate + row * stride + i), u = read<N>(up + row * stride + i);
      Pack<Number, N> slope = read<N>(gradient + row * width + i);
      for (int k = 0; k < N; k++) {
        float x = wide(g.at[k]), s = sigmoid(x), y = wide(u.at[k]), d = wide(slope.at[k]);
        // silu'(x) = s(x) + x s(x) (1 - s(x))
        set(g.at[k], d * y * (s + x * s * (1.0f - s)));
        set(u.at[k], d * x * s);
      }
      write<N>(to_gate + row * width + i, g);
      write<N>(to_up + row * width + i, u);
    }
}

// The gradients to gate and up from that to the result (rows, width), without gaps.
KERNEL swiglu_back(const Number *gate, const Number *up, const Number *gradient, Number *to_gate, Number *to_up, u64 rows,
                   unsigned width, u64 stride) {
  bool packs = aligned(gate) && aligned(up) && aligned(gradient) && aligned(to_gate) && aligned(to_up);
  if (packs && width % WIDE == 0 && stride % WIDE == 0)
    gated_back<WIDE>(gate, up, gradient, to_gate, to_up, rows, width, stride);
  else
    gated_back<1>(gate, up, gradient, to_gate, to_up, rows, width, stride);
}
