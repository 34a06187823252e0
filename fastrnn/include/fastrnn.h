/* fastrnn.h: recurrent models in real time, without Python.
 *
 * A model is a file that fastrnn.runtime.save() wrote in Python: LSTM, GRU, RNN and SRU layers, Linear and
 * activations one after the other, float32. A stream is one sequence that goes through it, with a state of its own.
 *
 *     char error[FASTRNN_ERROR_SIZE];
 *     fastrnn_model* model = fastrnn_load_file("amplifier.fastrnn", error, sizeof error);
 *     if (!model) { fprintf(stderr, "%s\n", error); return 1; }
 *     fastrnn_stream* stream = fastrnn_stream_new(model);
 *     fastrnn_process(stream, x, y, steps);           // as often as you like: the state goes on
 *     fastrnn_stream_free(stream);
 *     fastrnn_model_free(model);
 *
 * Threads. A model does not change once it is loaded: any number of streams on it may run at the same time on any
 * threads. One stream belongs to one thread at a time. The library starts no threads.
 *
 * Real time. fastrnn_process and fastrnn_reset allocate nothing, take no lock and call the system not once. All else
 * may do all of it: load and make streams before the audio begins.
 *
 * Numbers. The kernels are those of the Python package, for the best instruction set that the processor has (the
 * environment variable FASTRNN_CPU_ISA=baseline, avx2, avx512 or neon, read when a model is loaded, asks for
 * another). The results are those of Python's layer.streamer().step() to the last bit, however the steps are cut into
 * calls. Decaying states become denormal numbers, which some processors compute slowly; a thread that sets
 * flush-to-zero is respected, since nobody here changes the floating-point mode.
 *
 * The header is C99 and C++; the library needs the C++ runtime of the compiler that it was built with.
 */
#ifndef FASTRNN_H
#define FASTRNN_H

#include <stddef.h>

#if defined(_WIN32)
#define FASTRNN_API
#else
#define FASTRNN_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes that are enough for every error text. */
#define FASTRNN_ERROR_SIZE 512

typedef struct fastrnn_model fastrnn_model;
typedef struct fastrnn_stream fastrnn_stream;

typedef enum fastrnn_status {
  FASTRNN_OK = 0,
  FASTRNN_BAD_ARGUMENT = 1 /* a null pointer where there must be none */
} fastrnn_status;

/* The library's version, that of the Python package: "0.1.0". */
FASTRNN_API const char* fastrnn_version(void);
/* The newest version of the file format that the library reads; it reads all before it. */
FASTRNN_API int fastrnn_format_version(void);
/* What a status means, in words. */
FASTRNN_API const char* fastrnn_status_text(fastrnn_status status);

/* A model from a file, or from `size` bytes at `data`, which are not needed afterwards.
 * Returns null where there is no memory or the bytes are no model that this library runs; then `error`, if it is not
 * null, holds the reason, cut to error_size bytes with the final zero. Nothing that a file holds can do harm. */
FASTRNN_API fastrnn_model* fastrnn_load_file(const char* path, char* error, size_t error_size);
FASTRNN_API fastrnn_model* fastrnn_load_memory(const void* data, size_t size, char* error, size_t error_size);
/* Its streams may go on: they keep what they need of it. Null is allowed. */
FASTRNN_API void fastrnn_model_free(fastrnn_model* model);

/* Features of x and of y at each step; 0 for null. */
FASTRNN_API size_t fastrnn_input_size(const fastrnn_model* model);
FASTRNN_API size_t fastrnn_output_size(const fastrnn_model* model);
/* The instruction set whose kernels run: "avx512"; "" for null. */
FASTRNN_API const char* fastrnn_instruction_set(const fastrnn_model* model);

/* A new stream, whose state is zero; null where there is no memory, and for null. */
FASTRNN_API fastrnn_stream* fastrnn_stream_new(fastrnn_model* model);
/* Null is allowed. */
FASTRNN_API void fastrnn_stream_free(fastrnn_stream* stream);

/* The state becomes zero: a new sequence begins. */
FASTRNN_API fastrnn_status fastrnn_reset(fastrnn_stream* stream);
/* Runs `steps` steps, each on the state that the one before left.
 *   x   steps * input_size floats, step after step
 *   y   steps * output_size floats, written. It may be x itself where both have one size; else they do not overlap.
 * An input that is not a number goes into the state, and stays until fastrnn_reset. */
FASTRNN_API fastrnn_status fastrnn_process(fastrnn_stream* stream, const float* x, float* y, size_t steps);

#ifdef __cplusplus
}
#endif

#endif /* FASTRNN_H */
