// What the kernels share. Each file is compiled three times, with `Number` as bf16, f16 and f32: numbers are read and
// written in it, and computed with in f32.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define KERNEL extern "C" __global__ void
// Makes known a kernel whose name a macro makes.
#define ENTRY(name)
#define DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(128) unsigned char shared_memory[]; \
  type *name = reinterpret_cast<type *>(shared_memory)
#else
#include "emulate.h"
#endif

typedef unsigned long long u64;

// Numbers in 16 bytes.
#define WIDE (16 / (int)sizeof(Number))

// A thread's share of `count` things.
#define EACH(i, count) \
  for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += gridDim.x * (u64)blockDim.x)

static __device__ __forceinline__ float wide(float x) { return x; }
static __device__ __forceinline__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
static __device__ __forceinline__ float wide(__half x) { return __half2float(x); }
static __device__ __forceinline__ void set(float &out, float x) { out = x; }
static __device__ __forceinline__ void set(__nv_bfloat16 &out, float x) { out = __float2bfloat16(x); }
static __device__ __forceinline__ void set(__half &out, float x) { out = __float2half(x); }

// Numbers that one thread reads and writes at once: as many as 16 bytes are, or one.
template <typename T, int N> struct __align__(sizeof(T) * N) Pack {
  T at[N];
};
template <int N, typename T> static __device__ __forceinline__ Pack<T, N> read(const T *from) {
  return *reinterpret_cast<const Pack<T, N> *>(from);
}
template <int N, typename T> static __device__ __forceinline__ void write(T *to, const Pack<T, N> &pack) {
  *reinterpret_cast<Pack<T, N> *>(to) = pack;
}
// Whether 16 bytes may be read at this place; nothing is at none.
static __device__ __forceinline__ bool aligned(const void *place) { return reinterpret_cast<size_t>(place) % 16 == 0; }

// The sum over the lanes of a warp, for each of them.
template <typename T> static __device__ __forceinline__ T warp_sum(T x) {
  for (int with = 16; with; with >>= 1) x += __shfl_xor_sync(~0u, x, with);
  return x;
}

// The sum over the threads that differ in x only, for each of them. blockDim.x is a multiple of 32; all threads call it.
template <typename T> static __device__ __forceinline__ T row_sum(T x) {
  __shared__ T parts[32];
  x = warp_sum(x);
  unsigned warps = blockDim.x / 32;
  if (warps == 1) return x;
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.y * warps + threadIdx.x / 32] = x;
  __syncthreads();
  T sum = 0;
  for (unsigned warp = 0; warp < warps; warp++) sum += parts[threadIdx.y * warps + warp];
  return sum;
}
