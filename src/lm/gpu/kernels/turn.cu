// Heads of tokens: normed, if they are, turned by the angles of their positions, and scaled; queries, keys and values in
// one launch.
#include "common.cuh"

// A warp for each head of each token, of threads (32, y): `queries` heads, then `keys`, then `values`, which are copied.
// The heads of a token lie side by side, token n's at n · stride; those of the results without gaps. `cosine` and `sine`
// are (tokens, half); the first half of a head is paired with the second. `sign` -1 turns back.
KERNEL turn(const Number *query, const Number *key, const Number *value, const Number *query_norm,
            const Number *key_norm, const Number *cosine, const Number *sine, Number *out_query, Number *out_key,
            Number *out_value, unsigned tokens, unsigned queries, unsigned keys, unsigned values, unsigned half,
            u64 query_stride, u64 key_stride, u64 value_stride, float scale, float sign, float eps) {
  unsigned heads = queries + keys + values, width = 2 * half;
  u64 index = blockIdx.x * (u64)blockDim.y + threadIdx.y;
  unsigned head = index % heads;
  u64 token = index / heads;
  if (token >= tokens) return;
  if (head >= queries + keys) {
    head -= queries + keys;
    const Number *from = value + token * value_stride + head * width;
    Number *to = out_value + (token * values + head) * width;
    for (unsigned i = threadIdx.x; i < width; i += 32) to[i] = from[i];
    return;
  }
  bool is_query = head < queries;
  if (!is_query) head -= queries;
  const Number *from = (is_query ? query + token * query_stride : key + token * key_stride) + head * width;
  const Number *norm = is_query ? query_norm : key_norm;
  Number *to = is_query ? out_query + (token * queries + head) * width : out_key + (token * keys + head) * width;
  float factor = is_query ? scale : 1.0f;
  float inverse = 1;
  if (norm) {
    float squares = 0;
    for (unsigned i = threadIdx.x; i < width; i += 32) squares += wide(from[i]) * wide(from[i]);
    inverse = rsqrtf(warp_sum(squares) / width + eps);
  }
  for (unsigned i = threadIdx.x; i < half; i += 32) {
    float a = wide(from[i]) * inverse, b = wide(from[i + half]) * inverse;
    if (norm) {
      a *= wide(norm[i]);
      b *= wide(norm[i + half]);
    }
    float c = wide(cosine[token * half + i]), s = wide(sine[token * half + i]) * sign;
    set(to[i], (a * c - b * s) * factor);
    set(to[i + half], (b * c + a * s) * factor);
  }
}
