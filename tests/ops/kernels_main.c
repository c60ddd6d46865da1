/* Calls the CPU kernels on made-up numbers and writes their results, float32, to standard output: for processors on which
   the tests themselves do not run. */

#include "../../frepro/ops/cpu/kernels.c"

#include <stdio.h>

enum { B = 2, L = 37, D = 23, N = 16, H = 6, W = 10, F = 3 };

/* Numbers between low and high, the same on every machine. */
static float *numbers(int64_t count, float low, float high) {
    static uint32_t seed = 1;
    float *p = malloc(count * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = low + (high - low) * (float)(seed >> 8) / 16777216.0f;
    }
    return p;
}

static void show(const float *p, int64_t count) { fwrite(p, sizeof(float), count, stdout); }

static void scans(int64_t state, int is_reverse) {
    strides s = {L * D, D, 1}, rows = {L * state, state, 1};
    scan k = {
        numbers(B * L * D, -2, 2), numbers(B * L * D, -3, 3), numbers(B * L * D, -4, 4), numbers(state * D, -4, 0.1f),
        numbers(B * L * state, -1, 1), numbers(B * L * state, -1, 1), numbers(D, -1, 1), numbers(D, -1, 1),
        s, s, s, rows, rows, B, L, D, state, 1, is_reverse,
    };
    float *y = numbers(B * L * D, 0, 0), *dy = numbers(B * L * D, -1, 1);
    gradients g = {
        numbers(B * L * D, 0, 0), numbers(B * L * D, 0, 0), numbers(B * L * D, 0, 0), numbers(B * state * D, 0, 0),
        numbers(B * L * state, 0, 0), numbers(B * L * state, 0, 0), numbers(B * D, 0, 0), numbers(B * D, 0, 0),
    };
    scan_forward(&k, y, &s, 1);
    scan_backward(&k, dy, &s, &g, 1, 1);
    show(y, B * L * D), show(g.u, B * L * D), show(g.delta, B * L * D), show(g.z, B * L * D);
    show(g.A, B * state * D), show(g.B, B * L * state), show(g.C, B * L * state), show(g.D, B * D), show(g.bias, B * D);
}

static void convolutions(void) {
    strides s = {L * D, D, 1};
    convolution k = {numbers(B * L * D, -2, 2), numbers(4 * D, -1, 1), numbers(D, -1, 1), s, B, L, D, 4, 0};
    float *y = numbers(B * L * D, 0, 0), *dy = numbers(B * L * D, -1, 1);
    float *dx = numbers(B * L * D, 0, 0), *dweight = numbers(B * 4 * D, 0, 0), *dbias = numbers(B * D, 0, 0);
    convolution_forward(&k, y, 1);
    convolution_backward(&k, dy, &s, dx, dweight, dbias, 1);
    show(y, B * L * D), show(dx, B * L * D), show(dweight, B * 4 * D), show(dbias, B * D);
    float *map = numbers(B * H * W * D, -1, 1), *gradient = numbers(B * H * W * D, -1, 1);
    float *kernels = numbers(B * 49 * D, 0, 0), *biases = numbers(B * D, 0, 0);
    depthwise_gradient(map, gradient, B, H, W, D, 7, 7, kernels, biases, 1);
    show(kernels, B * 49 * D), show(biases, B * D);
}

static void activations(void) {
    const int64_t count = 1003;
    float *x = numbers(count, -9, 9), *dy = numbers(count, -1, 1), *y = numbers(count, 0, 0);
    double sums[2];
    gelu_backward(x, dy, count, y, 1);
    show(y, count);
    star_relu_forward(x, 0.7f, -0.2f, count, y, 1);
    show(y, count);
    star_relu_backward(x, dy, 0.7f, count, y, sums, 1);
    show(y, count), show((float[]){sums[0], sums[1]}, 2);
}

static void filters(int is_dynamic) {
    const int64_t half = W / 2 + 1, count = B * H * W * D, size = H * half * (is_dynamic ? F : D) * 2;
    float cosine[2][W], sine[2][W];
    for (int i = 0; i < W; i++) {
        cosine[0][i] = cos(6.283185307179586 * i / W), sine[0][i] = sin(6.283185307179586 * i / W);
        cosine[1][i] = cos(6.283185307179586 * i / H), sine[1][i] = sin(6.283185307179586 * i / H);
    }
    filter k = {
        numbers(count, -1, 1), numbers(size, -1, 1), is_dynamic ? numbers(B * F * D, 0, 1) : NULL,
        {W, 2, cosine[0], sine[0]}, {H, 2, cosine[1], sine[1]}, B, D, is_dynamic ? F : D, 0,
    };
    float *y = numbers(count, 0, 0), *dy = numbers(count, -1, 1), *dx = numbers(count, 0, 0);
    float *dbasis = numbers(size, 0, 0), *dcoefficients = numbers(B * F * D, 0, 0);
    filter_forward(&k, y, 0, 1);
    filter_backward(&k, dy, dx, dbasis, dcoefficients, 1);
    show(y, count), show(dx, count), show(dbasis, size), show(dcoefficients, B * F * D);
}

int main(void) {
    if (!instruction_set()) return 1;
    fprintf(stderr, "%s", instruction_set());
    scans(N, 0), scans(5, 1), convolutions(), activations(), filters(0), filters(1);
    return 0;
}
