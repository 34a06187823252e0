/* A program in C: streams floats from a file through a model, some steps a call.
 *
 *     plain MODEL X Y STEPS_A_CALL [IN_PLACE]
 *
 * Prints what the model says of itself, or the reason why there is none, and then returns 2.
 */
#include <fastrnn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float* floats_of(const char* path, size_t* count) {
  FILE* file = fopen(path, "rb");
  float* values;
  long bytes;
  if (!file) return NULL;
  fseek(file, 0, SEEK_END);
  bytes = ftell(file);
  rewind(file);
  values = (float*)malloc((size_t)bytes + 1);
  *count = fread(values, sizeof(float), (size_t)bytes / sizeof(float), file);
  fclose(file);
  return values;
}

int main(int argc, char** argv) {
  char error[FASTRNN_ERROR_SIZE];
  fastrnn_model* model;
  fastrnn_stream* stream;
  FILE* out;
  float *x, *y;
  size_t count, inputs, outputs, steps, piece, done;
  if (argc < 5) return 1;
  model = fastrnn_load_file(argv[1], error, sizeof error);
  if (!model) {
    puts(error);
    return 2;
  }
  inputs = fastrnn_input_size(model);
  outputs = fastrnn_output_size(model);
  printf("%s %d %s %u %u\n", fastrnn_version(), fastrnn_format_version(), fastrnn_instruction_set(model),
         (unsigned)inputs, (unsigned)outputs);
  x = floats_of(argv[2], &count);
  if (!x) return 3;
  steps = count / inputs;
  y = argc > 5 ? x : (float*)malloc(steps * outputs * sizeof(float) + 1);
  stream = fastrnn_stream_new(model);
  fastrnn_model_free(model); /* the stream goes on */
  for (piece = (size_t)atoi(argv[4]), done = 0; done < steps; done += piece) {
    if (piece > steps - done) piece = steps - done;
    if (fastrnn_process(stream, x + done * inputs, y + done * outputs, piece) != FASTRNN_OK) return 4;
  }
  out = fopen(argv[3], "wb");
  if (!out || fwrite(y, sizeof(float), steps * outputs, out) != steps * outputs) return 5;
  fclose(out);
  if (fastrnn_process(NULL, x, y, 1) != FASTRNN_BAD_ARGUMENT || fastrnn_process(stream, NULL, y, 1) == FASTRNN_OK ||
      fastrnn_process(stream, x, NULL, 1) == FASTRNN_OK || fastrnn_process(stream, NULL, NULL, 0) != FASTRNN_OK ||
      fastrnn_reset(NULL) != FASTRNN_BAD_ARGUMENT || fastrnn_stream_new(NULL) || fastrnn_input_size(NULL) ||
      fastrnn_output_size(NULL) || strcmp(fastrnn_instruction_set(NULL), "") ||
      strcmp(fastrnn_status_text(FASTRNN_OK), "no error") || fastrnn_load_file(NULL, NULL, 0) ||
      fastrnn_load_memory(NULL, 5, error, sizeof error) || !strstr(error, "got null") ||
      fastrnn_load_memory("abc", 3, error, 6) || strlen(error) != 5) {
    puts("a bad argument was taken");
    return 6;
  }
  fastrnn_stream_free(stream);
  fastrnn_stream_free(NULL);
  fastrnn_model_free(NULL);
  if (y != x) free(y);
  free(x);
  return 0;
}
