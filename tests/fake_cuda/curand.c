// libcurand.so.10, as far as candle calls it.
#include "count.h"

int curandCreateGenerator(void **generator, int type) { *generator = (void *)8; return 0; }
int curandDestroyGenerator(void *generator) { return 0; }
int curandSetStream(void *generator, void *stream) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *generator, u64 seed) { return 0; }
int curandSetGeneratorOffset(void *generator, u64 offset) { return 0; }
int curandGenerateUniform(void *generator, void *place, u64 count) { return 0; }
int curandGenerateNormal(void *generator, void *place, u64 count, float mean, float deviation) { return 0; }
