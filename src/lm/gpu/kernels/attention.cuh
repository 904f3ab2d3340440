// Attention over packed tokens, forward and backward, without a matrix of queries by keys in memory.
//
// A row is a stretch of queries with the keys that it sees: those of a prefix that rows may share, and its own. A query sees
// the keys up to itself, and not those further back than the window. Queries come scaled. The query heads that share a head
// of keys stand together: row r of a tile is query r / groups, head r % groups of them, so that short stretches fill a tile,
// and keys are read once for all.
//
// Dao 2023, "FlashAttention-2": the softmax is made while keys come by, and made again on the way back from its logarithmic
// sum. There, a block has queries for their gradient, or keys for theirs: sums have one order, and nothing is atomic.
//
// Products of bf16 are on tensor cores, sums are f32. f32 is computed without tensor cores, tile by tile like the other.

#pragma once
#include "common.cuh"
#ifdef __CUDACC__
#include <mma.h>
#endif

namespace wmma = nvcuda::wmma;

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;
// Rows of a block; a warp has 16 of them.
constexpr int ROWS = 16 * WARPS;
// Of two tiles that meet, the size of that which comes by.
constexpr int BY = 32;
constexpr float NEVER = -INFINITY;
// How often loops over the width are unrolled: without tensor cores a turn is long as it is.
template <class T> constexpr int TURNS = sizeof(T) == 2 ? 8 : 1;

static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
static __device__ __forceinline__ int warp() { return threadIdx.x / 32; }

// A matrix in shared memory; its rows are `ld` apart.
template <class T> struct Matrix {
  T *at;
  int ld;
  __device__ Matrix part(int row, int column) const { return {at + row * ld + column, ld}; }
};

// Products of tiles of 16 by 16 by one warp, each of whose threads has some numbers of the sum.
template <class T> struct Tile {
  using Left = wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major>;
  using Sum = wmma::fragment<wmma::accumulator, 16, 16, 16, float>;
  static constexpr int COUNT = Sum::num_elements;
  // Which row and column each number is of, as 16 · row + column: the hardware does not say, so a tile of these is read.
  int where[COUNT];

  // `scratch` is 256 floats of shared memory, free before and after.
  __device__ explicit Tile(float *scratch) {
    for (int at = threadIdx.x; at < 256; at += THREADS) scratch[at] = at;
    __syncthreads();
    Sum sum;
    wmma::load_matrix_sync(sum, scratch, 16, wmma::mem_row_major);
    for (int i = 0; i < COUNT; i++) where[i] = (int)sum.x[i];
    __syncthreads();
  }
  __device__ static void clear(Sum &sum) { wmma::fill_fragment(sum, 0.0f); }
  __device__ static void load(Left &left, Matrix<T> a) { wmma::load_matrix_sync(left, a.at, a.ld); }
  // sum += left · b
  __device__ static void add(Sum &sum, const Left &left, Matrix<T> b) {
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> right;
    wmma::load_matrix_sync(right, b.at, b.ld);
    wmma::mma_sync(sum, left, right, sum);
  }
  // sum += left · bᵀ
  __device__ static void add_turned(Sum &sum, const Left &left, Matrix<T> b) {
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> right;
    wmma::load_matrix_sync(right, b.at, b.ld);
    wmma::mma_sync(sum, left, right, sum);
  }
};

template <> struct Tile<float> {
  using Left = Matrix<float>;
  static constexpr int COUNT = 8;
  struct Sum {
    float x[COUNT];
  };
  int where[COUNT];

  __device__ explicit Tile(float *) {
    for (int i = 0; i < COUNT; i++) where[i] = row() * 16 + column() + i;
  }
  __device__ static int row() { return lane() / 2; }
  __device__ static int column() { return lane() % 2 * 8; }
  __device__ static void clear(Sum &sum) {
    for (int i = 0; i < COUNT; i++) sum.x[i] = 0.0f;
  }
  __device__ static void load(Left &left, Matrix<float> a) { left = a; }
  __device__ static void add(Sum &sum, const Left &left, Matrix<float> b) {
#pragma unroll
    for (int k = 0; k < 16; k++) {
      const float a = left.at[row() * left.ld + k];
      const float4 *line = reinterpret_cast<const float4 *>(b.at + k * b.ld + column());
      const float4 first = line[0], second = line[1];
      sum.x[0] += a * first.x, sum.x[1] += a * first.y, sum.x[2] += a * first.z, sum.x[3] += a * first.w;
      sum.x[4] += a * second.x, sum.x[5] += a * second.y, sum.x[6] += a * second.z, sum.x[7] += a * second.w;
    }
  }
  __device__ static void add_turned(Sum &sum, const Left &left, Matrix<float> b) {
#pragma unroll
    for (int k = 0; k < 16; k += 4) {
      const float4 a = *reinterpret_cast<const float4 *>(left.at + row() * left.ld + k);
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        const float4 line = *reinterpret_cast<const float4 *>(b.at + (column() + i) * b.ld + k);
        sum.x[i] += a.x * line.x + a.y * line.y + a.z * line.z + a.w * line.w;
      }
    }
  }
};

// Shapes that every kernel is told.
struct Shape {
  int heads, kv_heads;
  // Numbers of a head; a multiple of those in 16 bytes.
  int width;
  // How many keys a query sees at most.
  int window;
  // Numbers from one token to the next.
  int query_step, key_step, value_step;

  __device__ int groups() const { return heads / kv_heads; }
  __device__ bool sees(int query, int key) const { return key <= query && query - key < window; }
};

#define SHAPE int heads, int kv_heads, int width, int window, int query_step, int key_step, int value_step
#define THE_SHAPE \
  Shape { heads, kv_heads, width, window, query_step, key_step, value_step }

// A stretch of queries with consecutive tokens and positions.
struct Queries {
  int token, count, position;

  // The place of a row among the heads of all tokens, (N, H). Rows are the heads that share a head of keys, token by token.
  __device__ u64 place(int row, const Shape &shape, int kv_head) const {
    const int groups = shape.groups();
    return (u64)(token + row / groups) * shape.heads + kv_head * groups + row % groups;
  }
  // Where a row's query is.
  template <class T> __device__ const T *query(const T *all, int row, const Shape &shape, int kv_head) const {
    const int groups = shape.groups();
    return all + (u64)(token + row / groups) * shape.query_step + (kv_head * groups + row % groups) * shape.width;
  }
};

// What is in 16 bytes.
template <class T> constexpr int VECTOR = 16 / sizeof(T);

// Brings rows of heads into shared memory, 16 bytes at a time; `row(i)` is the address of row i, or null for zeros.
template <class T, int E, class Row> static __device__ __forceinline__ void fetch(Matrix<T> to, int rows, int width, Row row) {
  constexpr int PARTS = E / VECTOR<T>;
  for (int at = threadIdx.x; at < rows * PARTS; at += THREADS) {
    const int line = at / PARTS, column = at % PARTS * VECTOR<T>;
    const T *from = row(line);
    uint4 value = {0, 0, 0, 0};
    if (from != nullptr && column < width) value = *reinterpret_cast<const uint4 *>(from + column);
    *reinterpret_cast<uint4 *>(to.at + line * to.ld + column) = value;
  }
}

// Shared memory, taken from its beginning on.
struct Taken {
  unsigned char *next;
  template <class T> __device__ Matrix<T> matrix(int rows, int columns, int padding) {
    Matrix<T> made = {reinterpret_cast<T *>(next), columns + padding};
    next += sizeof(T) * rows * made.ld;
    return made;
  }
  template <class T> __device__ T *line(int count) { return matrix<T>(1, count, 0).at; }
};

// The largest and the sum over the eight neighbouring threads that have a row.
static __device__ __forceinline__ float largest_of_eight(float x) {
  for (int step = 1; step < 8; step *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
static __device__ __forceinline__ float sum_of_eight(float x) {
  for (int step = 1; step < 8; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// A tile of queries: five numbers in memory. Keys at positions before `queries.position` are the prefix's, the others are
// the queries' own tokens.
struct QueryTile {
  Queries queries;
  int prefix, first_row;

  __device__ explicit QueryTile(const unsigned *at)
      : queries{(int)at[0], (int)at[1], (int)at[2]}, prefix((int)at[3]), first_row((int)at[4]) {}
  __device__ int query(int row, const Shape &shape) const { return (first_row + row) / shape.groups(); }
  __device__ bool real(int row, const Shape &shape) const { return query(row, shape) < queries.count; }
  __device__ int position(int row, const Shape &shape) const {
    return queries.position + min(query(row, shape), queries.count - 1);
  }
  // The place of a row's head among those of all tokens: (N, H).
  __device__ u64 place(int row, const Shape &shape, int kv_head) const {
    return queries.place(first_row + row, shape, kv_head);
  }
  // Brings the tile's queries into shared memory.
  template <class T, int E> __device__ void fetch_queries(Matrix<T> to, const T *all, const Shape &shape, int kv_head) const {
    fetch<T, E>(to, ROWS, shape.width, [&](int row) -> const T * {
      return real(row, shape) ? queries.query(all, first_row + row, shape, kv_head) : nullptr;
    });
  }
  // Brings keys or values of `count` positions from `first` on, as far as there are any.
  template <class T, int E>
  __device__ void fetch_keys(Matrix<T> to, const T *all, int step, int first, int count, const Shape &shape, int kv_head) const {
    const int beyond = end(shape);
    fetch<T, E>(to, count, shape.width, [&](int row) -> const T * {
      return first + row < beyond ? all + (u64)key(first + row) * step + kv_head * shape.width : nullptr;
    });
  }
  __device__ int key(int position) const {
    return position < queries.position ? prefix + position : queries.token + position - queries.position;
  }
  // The first key that any row sees, and the end of the keys.
  __device__ int begin(const Shape &shape) const { return max(0, position(0, shape) - shape.window + 1); }
  __device__ int end(const Shape &shape) const { return position(ROWS - 1, shape) + 1; }
};
