/* == fold */
/* The sum of 64 lanes over which n numbers were dealt, by halves, in bitexp's order. */
static float fold(float *lanes, int n) {
    int width = 32, i;
    while (width >= n) width /= 2;
    for (; width > 0; width /= 2)
        for (i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}
/* == ordered_sum: fold */
/* The sum of n numbers, or of their squares, `step` apart, in bitexp's order. */
static float ordered_sum(const float *x, int n, int step, int squared) {
    float lanes[64];
    int i;
    for (i = 0; i < 64; i++) lanes[i] = -0.0f;
    for (i = 0; i < n; i++) {
        float v = x[(size_t)i * step];
        lanes[i & 63] += squared ? v * v : v;
    }
    return fold(lanes, n);
}
/* == norm: ordered_sum */
/* Layer (centered) or RMS norm of `count` vectors of n numbers; those of a vector lie `step` apart. */
static void norm(float *y, const float *x, int count, int apart, int n, int step, int centered, float eps,
                 const float *gain, const float *bias) {
    float share = (float)(1.0 / n);
    int c, i;
    for (c = 0; c < count; c++) {
        const float *from = x + (size_t)c * apart;
        float *to = y + (size_t)c * apart, mean = centered ? ordered_sum(from, n, step, 0) * share : 0.0f, rstd;
        for (i = 0; i < n; i++) to[(size_t)i * step] = from[(size_t)i * step] - mean;
        rstd = 1.0f / sqrtf(ordered_sum(to, n, step, 1) * share + eps);
        for (i = 0; i < n; i++) {
            float v = to[(size_t)i * step] * rstd;
            if (gain) v *= gain[i];
            if (bias) v += bias[i];
            to[(size_t)i * step] = v;
        }
    }
}
/* == code */
static int8_t code(float v) {
    v = rintf(v);
    return (int8_t)(v > 127.0f ? 127.0f : v);
}
/* == codes: code */
/* Activations as integers: rint(x * (qmax / largest)); returns what multiplies them. */
static float codes(int8_t *q, const float *x, int n, float qmax) {
    float largest = 1e-5f, factor;
    int i;
    for (i = 0; i < n; i++) {
        float v = fabsf(x[i]);
        if (v > largest) largest = v;
    }
    factor = (1.0f / largest) * qmax;
    for (i = 0; i < n; i++) q[i] = code(x[i] * factor);
    return largest / qmax;
}
/* == pixel_sum: fold */
/* The sum of n pixels less `mean`, or of the squares, in bitexp's order. */
static float pixel_sum(const uint8_t *x, int n, float mean, int squared) {
    float lanes[64];
    int i;
    for (i = 0; i < 64; i++) lanes[i] = -0.0f;
    for (i = 0; i < n; i++) {
        float v = pixel(x, i) - mean;
        lanes[i & 63] += squared ? v * v : v;
    }
    return fold(lanes, n);
}
/* == pixel_codes: pixel_sum, code */
/* Codes of an image of n pixels, after a layer (centered) or RMS norm where there is one, without a copy in floats. */
static float pixel_codes(int8_t *q, const uint8_t *x, int n, float qmax, int normed, int centered, float eps) {
    float share = (float)(1.0 / n), mean = 0.0f, rstd = 1.0f, largest = 1e-5f, factor;
    int i;
    if (normed) {
        if (centered) mean = pixel_sum(x, n, 0.0f, 0) * share;
        rstd = 1.0f / sqrtf(pixel_sum(x, n, mean, 1) * share + eps);
    }
    for (i = 0; i < n; i++) {
        float v = fabsf((pixel(x, i) - mean) * rstd);
        if (v > largest) largest = v;
    }
    factor = (1.0f / largest) * qmax;
    for (i = 0; i < n; i++) q[i] = code((pixel(x, i) - mean) * rstd * factor);
    return largest / qmax;
}
/* == row_pack1 */
/* Sum of n activations times codes: two levels, eight in a byte, the first in the lowest bit. */
static int32_t row_pack1(const int8_t *q, const uint8_t *w, int n, int low, int stride) {
    int32_t ones = 0, all = 0;
    int i;
    for (i = 0; i < n; i++) {
        all += q[i];
        if (w[i >> 3] >> (i & 7) & 1) ones += q[i];
    }
    return low * all + stride * ones;
}
/* == row_pack5 */
/* Three levels, five in a byte in base 3, the first the least significant. */
static int32_t row_pack5(const int8_t *q, const uint8_t *w, int n, int low, int stride) {
    int32_t digits = 0, all = 0;
    int i = 0;
    while (i < n) {
        unsigned byte = *w++;
        int end = i + 5 < n ? i + 5 : n;
        for (; i < end; i++) {
            unsigned rest = byte / 3u;
            digits += q[i] * (int32_t)(byte - 3u * rest);
            all += q[i];
            byte = rest;
        }
    }
    return low * all + stride * digits;
}
/* == row_pack2 */
/* Up to four levels, four in a byte, the first in the lowest bits. */
static int32_t row_pack2(const int8_t *q, const uint8_t *w, int n, int low, int stride) {
    int32_t digits = 0, all = 0;
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        unsigned byte = *w++;
        digits += q[i] * (int32_t)(byte & 3u) + q[i + 1] * (int32_t)(byte >> 2 & 3u);
        digits += q[i + 2] * (int32_t)(byte >> 4 & 3u) + q[i + 3] * (int32_t)(byte >> 6);
        all += q[i] + q[i + 1] + q[i + 2] + q[i + 3];
    }
    for (; i < n; i++) {
        digits += q[i] * (int32_t)(*w >> 2 * (i & 3) & 3);
        all += q[i];
    }
    return low * all + stride * digits;
}
/* == row_pack4 */
/* Up to sixteen levels, two in a byte, the first in the lowest bits. */
static int32_t row_pack4(const int8_t *q, const uint8_t *w, int n, int low, int stride) {
    int32_t digits = 0, all = 0;
    int i;
    for (i = 0; i < n; i++) {
        digits += q[i] * (int32_t)(w[i >> 1] >> 4 * (i & 1) & 15);
        all += q[i];
    }
    return low * all + stride * digits;
}
/* == row_pack8 */
/* Up to 256 levels, one in a byte. */
static int32_t row_pack8(const int8_t *q, const uint8_t *w, int n, int low, int stride) {
    int32_t digits = 0, all = 0;
    int i;
    for (i = 0; i < n; i++) {
        digits += q[i] * (int32_t)w[i];
        all += q[i];
    }
    return low * all + stride * digits;
}
/* == products */
/* Codes of n activations times a quantized layer's. `scales` is one, or one an output (`each`). */
static void products(float *y, const int8_t *q, float scale, int n, int outputs, row_sum sum, const uint8_t *w,
                     int bytes, int low, int stride, const float *scales, int each, const float *bias, int scaled) {
    int o;
    for (o = 0; o < outputs; o++) {
        float v = (float)sum(q, w + (size_t)o * bytes, n, low, stride);
        if (bias && scaled) v += bias[o];
        v *= scale * scales[each ? o : 0];
        if (bias && !scaled) v += bias[o];
        y[o] = v;
    }
}
/* == linear: codes, products */
/* A quantized linear layer over `rows` inputs of n numbers. */
static void linear(float *y, const float *x, int rows, int n, int outputs, int8_t *q, float qmax, row_sum sum,
                   const uint8_t *w, int bytes, int low, int stride, const float *scales, int each,
                   const float *bias, int scaled) {
    int r;
    for (r = 0; r < rows; r++) {
        float scale = codes(q, x + (size_t)r * n, n, qmax);
        products(y + (size_t)r * outputs, q, scale, n, outputs, sum, w, bytes, low, stride, scales, each, bias,
                 scaled);
    }
}
/* == linear_pixels: pixel_codes, products */
/* A quantized linear layer over an image of n pixels, with the norm of its inputs. */
static void linear_pixels(float *y, const uint8_t *x, int n, int outputs, int normed, int centered, float eps,
                          int8_t *q, float qmax, row_sum sum, const uint8_t *w, int bytes, int low, int stride,
                          const float *scales, int each, const float *bias, int scaled) {
    float scale = pixel_codes(q, x, n, qmax, normed, centered, eps);
    products(y, q, scale, n, outputs, sum, w, bytes, low, stride, scales, each, bias, scaled);
}
/* == dense */
/* A linear layer in full precision. */
static void dense(float *y, const float *x, int rows, int n, int outputs, const float *w, const float *bias) {
    int r, o, i;
    for (r = 0; r < rows; r++)
        for (o = 0; o < outputs; o++) {
            float v = 0.0f;
            for (i = 0; i < n; i++) v += x[(size_t)r * n + i] * w[(size_t)o * n + i];
            y[(size_t)r * outputs + o] = bias ? v + bias[o] : v;
        }
}
/* == dense8 */
/* A linear layer whose weights are int8 codes with a scale for each output. */
static void dense8(float *y, const float *x, int rows, int n, int outputs, const int8_t *w, const float *scales,
                   const float *bias) {
    int r, o, i;
    for (r = 0; r < rows; r++)
        for (o = 0; o < outputs; o++) {
            float v = 0.0f;
            for (i = 0; i < n; i++) v += x[(size_t)r * n + i] * (float)w[(size_t)o * n + i];
            v *= scales[o];
            y[(size_t)r * outputs + o] = bias ? v + bias[o] : v;
        }
}
/* == convolve: codes */
/* A quantized convolution of x [channels, height, width]; w [outputs, channels / groups * k0 * k1]. */
static void convolve(float *y, const float *x, const conv_shape *s, int8_t *q, int8_t *patch, float qmax, row_sum sum,
                     const uint8_t *w, int bytes, int low, int stride, const float *scales, int each,
                     const float *bias, int scaled) {
    int in = s->channels / s->groups, out = s->outputs / s->groups, g, o, i, j, c, a, b;
    float scale = codes(q, x, s->channels * s->height * s->width, qmax);
    for (g = 0; g < s->groups; g++)
        for (i = 0; i < s->rows; i++)
            for (j = 0; j < s->columns; j++) {
                int8_t *to = patch;
                for (c = g * in; c < (g + 1) * in; c++)
                    for (a = 0; a < s->k0; a++)
                        for (b = 0; b < s->k1; b++) {
                            int h = i * s->s0 - s->p0 + a * s->d0, v = j * s->s1 - s->p1 + b * s->d1;
                            int inside = h >= 0 && h < s->height && v >= 0 && v < s->width;
                            *to++ = inside ? q[((size_t)c * s->height + h) * s->width + v] : 0;
                        }
                for (o = g * out; o < (g + 1) * out; o++) {
                    float value = (float)sum(patch, w + (size_t)o * bytes, in * s->k0 * s->k1, low, stride);
                    if (bias && scaled) value += bias[o];
                    value *= scale * scales[each ? o : 0];
                    if (bias && !scaled) value += bias[o];
                    y[((size_t)o * s->rows + i) * s->columns + j] = value;
                }
            }
}
/* == convolve_floats */
/* A convolution in full precision. */
static void convolve_floats(float *y, const float *x, const conv_shape *s, const float *w, const float *bias) {
    int in = s->channels / s->groups, out = s->outputs / s->groups, o, i, j, c, a, b;
    for (o = 0; o < s->outputs; o++)
        for (i = 0; i < s->rows; i++)
            for (j = 0; j < s->columns; j++) {
                const float *from = w + (size_t)o * in * s->k0 * s->k1;
                float v = 0.0f;
                for (c = o / out * in; c < (o / out + 1) * in; c++)
                    for (a = 0; a < s->k0; a++)
                        for (b = 0; b < s->k1; b++, from++) {
                            int h = i * s->s0 - s->p0 + a * s->d0, k = j * s->s1 - s->p1 + b * s->d1;
                            if (h >= 0 && h < s->height && k >= 0 && k < s->width)
                                v += *from * x[((size_t)c * s->height + h) * s->width + k];
                        }
                y[((size_t)o * s->rows + i) * s->columns + j] = bias ? v + bias[o] : v;
            }
}
/* == affine */
/* A batch norm in evaluation: y = x * gain + bias for each channel. */
static void affine(float *y, const float *x, int channels, int n, const float *gain, const float *bias) {
    int c, i;
    for (c = 0; c < channels; c++)
        for (i = 0; i < n; i++) y[(size_t)c * n + i] = x[(size_t)c * n + i] * gain[c] + bias[c];
}
/* == max_pool */
/* The largest of each window of `size` x `size`. */
static void max_pool(float *y, const float *x, int channels, int height, int width, int size) {
    int c, i, j, a, b, rows = height / size, columns = width / size;
    for (c = 0; c < channels; c++)
        for (i = 0; i < rows; i++)
            for (j = 0; j < columns; j++) {
                const float *from = x + ((size_t)c * height + i * size) * width + j * size;
                float v = *from;
                for (a = 0; a < size; a++)
                    for (b = 0; b < size; b++)
                        if (from[(size_t)a * width + b] > v) v = from[(size_t)a * width + b];
                y[((size_t)c * rows + i) * columns + j] = v;
            }
}
/* == means */
/* The mean of each of `rows` rows of n numbers. */
static void means(float *y, const float *x, int rows, int n) {
    int r, i;
    for (r = 0; r < rows; r++) {
        float v = 0.0f;
        for (i = 0; i < n; i++) v += x[(size_t)r * n + i];
        y[r] = v / (float)n;
    }
}
/* == mean_row */
/* The mean of rows. */
static void mean_row(float *y, const float *x, int rows, int n) {
    int r, i;
    for (i = 0; i < n; i++) {
        float v = 0.0f;
        for (r = 0; r < rows; r++) v += x[(size_t)r * n + i];
        y[i] = v / (float)rows;
    }
}
/* == relu */
static float relu(float x) { return x > 0.0f ? x : 0.0f; }
/* == relu2 */
static float relu2(float x) { return x > 0.0f ? x * x : 0.0f; }
/* == silu */
static float silu(float x) { return x / (1.0f + expf(-x)); }
/* == gelu */
static float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
/* == activate */
static void activate(float *y, const float *x, int n, float (*function)(float)) {
    int i;
    for (i = 0; i < n; i++) y[i] = function(x[i]);
}
/* == gated */
static void gated(float *y, const float *gate, const float *up, int n, float (*function)(float)) {
    int i;
    for (i = 0; i < n; i++) y[i] = function(gate[i]) * up[i];
}
/* == add */
static void add(float *y, const float *a, const float *b, int n) {
    int i;
    for (i = 0; i < n; i++) y[i] = a[i] + b[i];
}
/* == gather */
static void gather(float *y, const float *x, const uint16_t *places, int n) {
    int i;
    for (i = 0; i < n; i++) y[i] = x[places[i]];
}
/* == gather_pixels */
static void gather_pixels(float *y, const uint8_t *x, const uint16_t *places, int n) {
    int i;
    for (i = 0; i < n; i++) y[i] = pixel(x, places[i]);
}
/* == pixels */
static void pixels(float *y, const uint8_t *x, int n) {
    int i;
    for (i = 0; i < n; i++) y[i] = pixel(x, i);
}
/* == softmax */
static void softmax(float *x, int n) {
    float largest = x[0], sum = 0.0f;
    int i;
    for (i = 1; i < n; i++)
        if (x[i] > largest) largest = x[i];
    for (i = 0; i < n; i++) sum += x[i] = expf(x[i] - largest);
    for (i = 0; i < n; i++) x[i] /= sum;
}
/* == attend_all: softmax */
/* Attention between all rows; a row of x is [3, heads, size]. */
static void attend_all(float *y, const float *x, int rows, int heads, int size, float *weights) {
    int width = heads * size, h, r, t, i;
    float factor = 1.0f / sqrtf((float)size);
    for (h = 0; h < heads; h++)
        for (r = 0; r < rows; r++) {
            const float *query = x + (size_t)r * 3 * width + h * size;
            float *to = y + (size_t)r * width + h * size;
            for (t = 0; t < rows; t++) {
                const float *key = x + (size_t)t * 3 * width + width + h * size;
                float v = 0.0f;
                for (i = 0; i < size; i++) v += query[i] * key[i];
                weights[t] = v * factor;
            }
            softmax(weights, rows);
            for (i = 0; i < size; i++) {
                float v = 0.0f;
                for (t = 0; t < rows; t++) v += weights[t] * x[(size_t)t * 3 * width + 2 * width + h * size + i];
                to[i] = v;
            }
        }
}
/* == attend: softmax */
/* Causal attention of the token at `place`, with rotary positions; keys and values join the cache. */
static void attend(float *y, float *q, float *k, const float *v, int place, int heads, int kv_heads, int size,
                   const float *cosine, const float *sine, float *keys, float *values, float *weights) {
    int width = kv_heads * size, half = size / 2, h, t, i;
    float factor = 1.0f / sqrtf((float)size);
    for (h = 0; h < heads + kv_heads; h++) {
        float *x = h < heads ? q + h * size : k + (h - heads) * size;
        for (i = 0; i < half; i++) {
            float c = cosine[place * half + i], s = sine[place * half + i], a = x[i], b = x[i + half];
            x[i] = a * c - b * s;
            x[i + half] = b * c + a * s;
        }
    }
    for (i = 0; i < width; i++) {
        keys[(size_t)place * width + i] = k[i];
        values[(size_t)place * width + i] = v[i];
    }
    for (h = 0; h < heads; h++) {
        int from = h / (heads / kv_heads) * size;
        for (t = 0; t <= place; t++) {
            float sum = 0.0f;
            for (i = 0; i < size; i++) sum += q[h * size + i] * keys[(size_t)t * width + from + i];
            weights[t] = sum * factor;
        }
        softmax(weights, place + 1);
        for (i = 0; i < size; i++) {
            float sum = 0.0f;
            for (t = 0; t <= place; t++) sum += weights[t] * values[(size_t)t * width + from + i];
            y[h * size + i] = sum;
        }
    }
}
/* == lookup */
/* A row of an embedding. */
static void lookup(float *y, const float *w, int token, int n) {
    int i;
    for (i = 0; i < n; i++) y[i] = w[(size_t)token * n + i];
}
/* == lookup8 */
static void lookup8(float *y, const int8_t *w, const float *scales, int token, int n) {
    int i;
    for (i = 0; i < n; i++) y[i] = (float)w[(size_t)token * n + i] * scales[token];
}
/* == prepend */
static void prepend(float *y, const float *x, const float *row, int n, int first) {
    int i;
    for (i = 0; i < first; i++) y[i] = row[i];
    for (i = 0; i < n; i++) y[first + i] = x[i];
}
