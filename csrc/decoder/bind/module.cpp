// Python bindings of the decoder: `llmfast._decoder`. Arguments are checked here; llmfast/inference/native.py makes
// them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/gil.h"
#include "bind/signals.h"
#include "decoder/cpu_decoder.h"

namespace nb = nanobind;

using namespace llmfast;

namespace {

template <typename Number, size_t dimensions>
using Array = nb::ndarray<const Number, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;
using Floats = Array<float, 1>;
using Table = Array<float, 2>;
using Result = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

[[noreturn]] void refuse(const std::string& why) { throw nb::value_error(why.c_str()); }

void require(bool holds, const std::string& otherwise) {
    if (!holds) refuse(otherwise);
}

std::string text(size_t number) { return std::to_string(number); }

Format format_of(const std::string& name) {
    const std::optional<Format> format = format_named(name);
    if (!format) refuse("format must be float32, bfloat16, int8 or int4, got " + name);
    return *format;
}

const Kernels& kernels_of(const std::optional<std::string>& name) {
    if (!name) return *all_kernels()[0];
    for (const Kernels* const* kernels = all_kernels(); *kernels; ++kernels)
        if ((*kernels)->name == *name) return **kernels;
    refuse("this CPU has no instructions named " + *name);
}

Activation activation_of(const std::string& name) {
    if (name == "gelu") return Activation::kGelu;
    if (name == "gelu_tanh") return Activation::kGeluTanh;
    if (name == "swiglu") return Activation::kSwiglu;
    if (name == "geglu") return Activation::kGeglu;
    if (name == "geglu_tanh") return Activation::kGegluTanh;
    refuse("there is no activation named " + name);
}

std::vector<float> numbers_of(const Floats& array) { return {array.data(), array.data() + array.size()}; }
std::vector<float> numbers_of(const std::optional<Floats>& array) {
    return array ? numbers_of(*array) : std::vector<float>{};
}
std::vector<float> numbers_of(const std::optional<Table>& table) {
    if (!table) return {};
    return {table->data(), table->data() + table->size()};
}

Norm norm_of(const std::optional<Floats>& weight, const std::optional<Floats>& bias, size_t width, const char* name) {
    Norm norm{numbers_of(weight), numbers_of(bias)};
    require(!weight || norm.weight.size() == width, std::string(name) + " must have " + text(width) + " weights");
    require(!bias || norm.bias.size() == width, std::string(name) + " must have " + text(width) + " biases");
    return norm;
}

using SharedMatrix = std::shared_ptr<Matrix>;

Linear linear_of(const SharedMatrix& matrix, const std::optional<Floats>& bias, size_t rows, size_t columns,
                 const char* name) {
    require(matrix->rows() == rows && matrix->columns() == columns,
            std::string(name) + " must be (" + text(rows) + ", " + text(columns) + "), got (" + text(matrix->rows()) +
                ", " + text(matrix->columns()) + ")");
    Linear linear{matrix, numbers_of(bias)};
    require(!bias || linear.bias.size() == rows, std::string(name) + " must have " + text(rows) + " biases");
    if (bias) linear.bias.resize(matrix->panels() * kPanel);
    return linear;
}

void construct_matrix(Matrix* self, const Table& weights, const std::string& format, size_t threads) {
    const Format named = format_of(format);
    require(weights.size() > 0, "weights must have at least one row and one column");
    const WithoutGil released;
    new (self) Matrix(weights.data(), weights.shape(0), weights.shape(1), named, threads);
}

Result unpacked(const Matrix& matrix) {
    std::unique_ptr<float[]> weights(new float[matrix.rows() * matrix.columns()]);
    {
        const WithoutGil released;
        for (size_t row = 0; row < matrix.rows(); ++row) {
            check_interrupt();
            matrix.unpack_row(row, weights.get() + row * matrix.columns());
        }
    }
    float* const data = weights.release();
    nb::capsule owner(data, [](void* memory) noexcept { delete[] static_cast<float*>(memory); });
    return Result(data, {matrix.rows(), matrix.columns()}, owner);
}

void construct_cache(Cache* self, size_t layers, size_t kv_heads, size_t head_width, size_t blocks, size_t block_size,
                     const std::string& numbers) {
    const Format format = format_of(numbers);
    require(!is_integer(format), "the cache holds float32 or bfloat16, not " + numbers);
    require(block_size > 0 && block_size % kPanel == 0,
            "block_size must be a multiple of " + text(kPanel) + ", got " + text(block_size));
    require(blocks > 0 && layers > 0 && kv_heads > 0 && head_width > 0, "the cache must hold something");
    new (self) Cache(layers, kv_heads, head_width, blocks, block_size, format);
}

void copy_block(Cache& cache, size_t from, size_t to) {
    require(from < cache.blocks && to < cache.blocks, "blocks are numbered from 0 to " + text(cache.blocks - 1));
    cache.copy(from, to);
}

// `[gate | up]` is one matrix if the activation is gated.
void construct_model(Model* self, size_t width, size_t heads, size_t kv_heads, size_t head_width, size_t ff_width,
                     size_t vocabulary, size_t context, float norm_eps, float embedding_scale,
                     const std::string& activation, const SharedMatrix& embedding, const SharedMatrix& head,
                     const Floats& norm, const std::optional<Floats>& norm_bias, const std::optional<Floats>& smear,
                     const std::optional<Table>& positions, const std::optional<Table>& cos,
                     const std::optional<Table>& sin) {
    const Shape shape{width,      heads,   kv_heads, head_width,      ff_width,
                      vocabulary, context, norm_eps, embedding_scale, activation_of(activation)};
    require(kv_heads > 0 && heads % kv_heads == 0, "heads must be a multiple of kv_heads");
    require(head_width % 2 == 0 && head_width > 0 && head_width <= 256, "head_width must be even, from 2 to 256");
    require(vocabulary <= head->rows() && vocabulary <= embedding->rows(), "the tables have too few rows");
    require(head->columns() == width && embedding->columns() == width, "the tables must have width columns");
    require(!smear || smear->size() == width, "smear must have width numbers");
    require(!positions || (positions->shape(0) == context && positions->shape(1) == width),
            "positions must be (context, width)");
    const auto fits = [&](const std::optional<Table>& table) {
        return !table || (table->shape(0) == context && table->shape(1) == head_width / 2);
    };
    require(cos.has_value() == sin.has_value() && fits(cos) && fits(sin),
            "cos and sin must be (context, head_width / 2)");
    new (self) Model{shape,
                     embedding,
                     head,
                     numbers_of(smear),
                     numbers_of(positions),
                     numbers_of(cos),
                     numbers_of(sin),
                     {},
                     norm_of(norm, norm_bias, width, "norm")};
}

void add_layer(Model& model, const Floats& attention_norm, const std::optional<Floats>& attention_norm_bias,
               const SharedMatrix& qkv, const std::optional<Floats>& qkv_bias, const std::optional<Floats>& q_norm,
               const std::optional<Floats>& q_norm_bias, const std::optional<Floats>& k_norm,
               const std::optional<Floats>& k_norm_bias, const SharedMatrix& out, const std::optional<Floats>& out_bias,
               const Floats& feed_forward_norm, const std::optional<Floats>& feed_forward_norm_bias,
               const SharedMatrix& up, const std::optional<Floats>& up_bias, const SharedMatrix& down,
               const std::optional<Floats>& down_bias, std::optional<size_t> window) {
    const Shape& shape = model.shape;
    const size_t E = shape.width, D = shape.head_width, F = shape.ff_width;
    require(!window || *window > 0, "window must be at least 1");
    model.layers.push_back({
        norm_of(attention_norm, attention_norm_bias, E, "attention_norm"),
        linear_of(qkv, qkv_bias, (shape.heads + 2 * shape.kv_heads) * D, E, "qkv"),
        norm_of(q_norm, q_norm_bias, D, "q_norm"),
        norm_of(k_norm, k_norm_bias, D, "k_norm"),
        linear_of(out, out_bias, E, shape.heads * D, "out"),
        norm_of(feed_forward_norm, feed_forward_norm_bias, E, "feed_forward_norm"),
        linear_of(up, up_bias, is_gated(shape.activation) ? 2 * F : F, E, "up"),
        linear_of(down, down_bias, E, F, "down"),
        window.value_or(std::numeric_limits<size_t>::max()),
    });
}

void construct_decoder(CpuDecoder* self, const Model& model, size_t threads,
                       const std::optional<std::string>& instructions) {
    require(threads > 0, "threads must be at least 1");
    new (self) CpuDecoder(model, kernels_of(instructions), threads);
}

// The chunks of a batch, after every argument was found in range.
std::vector<Chunk> chunks_of(const CpuDecoder& decoder, const Cache& cache, const Array<int32_t, 1>& tokens,
                             const Array<int64_t, 1>& past, const Array<int64_t, 1>& counts,
                             const Array<int32_t, 2>& blocks, const Array<int32_t, 1>& previous) {
    const Shape& shape = decoder.model().shape;
    require(cache.layers == decoder.model().layers.size() && cache.kv_heads == shape.kv_heads &&
                cache.head_width == shape.head_width,
            "the cache is of another model");
    const auto is_token = [&](int32_t token) { return token >= 0 && static_cast<size_t>(token) < shape.vocabulary; };
    require(std::all_of(tokens.data(), tokens.data() + tokens.size(), is_token),
            "tokens must be from 0 to " + text(shape.vocabulary - 1));
    const size_t count = past.size();
    require(counts.size() == count && blocks.shape(0) == count && previous.size() == count,
            "past, counts, blocks and previous must have an entry for each chunk");
    std::vector<Chunk> chunks;
    size_t first = 0;
    for (size_t i = 0; i < count; ++i) {
        const int64_t before = past.data()[i], here = counts.data()[i];
        require(before >= 0 && here > 0 && before <= static_cast<int64_t>(shape.context) &&
                    here <= static_cast<int64_t>(shape.context) - before,
                "a sequence has 1 to " + text(shape.context) + " tokens, got " + std::to_string(before) + " and " +
                    std::to_string(here) + " more");
        const size_t needed = (static_cast<size_t>(before + here) + cache.block_size - 1) / cache.block_size;
        require(needed <= blocks.shape(1), "a sequence has too few blocks");
        const int32_t* const own = blocks.data() + i * blocks.shape(1);
        require(std::all_of(own, own + needed,
                            [&](int32_t block) { return block >= 0 && static_cast<size_t>(block) < cache.blocks; }),
                "blocks are numbered from 0 to " + text(cache.blocks - 1));
        require(previous.data()[i] < 0 || is_token(previous.data()[i]), "previous must be a token, or negative");
        chunks.push_back({static_cast<size_t>(before), first, static_cast<size_t>(here), own, previous.data()[i]});
        first += static_cast<size_t>(here);
    }
    require(first == tokens.size(), "counts must add up to the number of tokens");
    return chunks;
}

// Logits (wanted, vocabulary), a view of rows that are filled up to whole panels.
Result forward(CpuDecoder& decoder, Cache& cache, const Array<int32_t, 1>& tokens, const Array<int64_t, 1>& past,
               const Array<int64_t, 1>& counts, const Array<int32_t, 2>& blocks, const Array<int32_t, 1>& previous,
               const Array<int64_t, 1>& wanted) {
    const std::vector<Chunk> chunks = chunks_of(decoder, cache, tokens, past, counts, blocks, previous);
    for (size_t i = 0; i < wanted.size(); ++i) {
        const int64_t place = wanted.data()[i];
        require(place >= 0 && static_cast<size_t>(place) < tokens.size() && (i == 0 || place > wanted.data()[i - 1]),
                "wanted must be places of tokens, in ascending order");
    }
    const size_t step = decoder.logits_step();
    std::unique_ptr<float[]> logits(new float[std::max<size_t>(wanted.size() * step, 1)]);
    {
        const WithoutGil released;
        decoder.forward({{tokens.data(), tokens.size()}, chunks, {wanted.data(), wanted.size()}}, cache, logits.get());
    }
    float* const data = logits.release();
    nb::capsule owner(data, [](void* memory) noexcept { delete[] static_cast<float*>(memory); });
    return Result(data, {wanted.size(), decoder.model().shape.vocabulary}, owner, {static_cast<int64_t>(step), 1});
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* const* kernels = all_kernels(); *kernels; ++kernels) names.push_back((*kernels)->name);
    return names;
}

nb::arg operator""_a(const char* name, size_t) { return nb::arg(name); }

}  // namespace

NB_MODULE(_decoder, module) {
    module.doc() = "llmfast's decoder for CPUs";
    nb::set_leak_warnings(false);  // objects that a thread still holds when the program ends are no leak
    register_signals();
    nb::class_<Matrix>(module, "Matrix")
        .def("__init__", &construct_matrix, "weights"_a, "format"_a, "threads"_a = 1)
        .def_prop_ro("rows", &Matrix::rows)
        .def_prop_ro("columns", &Matrix::columns)
        .def_prop_ro("nbytes", &Matrix::bytes)
        .def("unpacked", &unpacked);
    nb::class_<Cache>(module, "Cache")
        .def("__init__", &construct_cache, "layers"_a, "kv_heads"_a, "head_width"_a, "blocks"_a, "block_size"_a,
             "numbers"_a)
        .def_prop_ro("nbytes", &Cache::bytes)
        .def("copy", &copy_block, "source"_a, "target"_a);
    nb::class_<Model>(module, "Model")
        .def("__init__", &construct_model, nb::kw_only(), "width"_a, "heads"_a, "kv_heads"_a, "head_width"_a,
             "ff_width"_a, "vocabulary"_a, "context"_a, "norm_eps"_a, "embedding_scale"_a, "activation"_a,
             "embedding"_a, "head"_a, "norm"_a, "norm_bias"_a = nb::none(), "smear"_a = nb::none(),
             "positions"_a = nb::none(), "cos"_a = nb::none(), "sin"_a = nb::none())
        .def("add_layer", &add_layer, nb::kw_only(), "attention_norm"_a, "attention_norm_bias"_a = nb::none(), "qkv"_a,
             "qkv_bias"_a = nb::none(), "q_norm"_a = nb::none(), "q_norm_bias"_a = nb::none(), "k_norm"_a = nb::none(),
             "k_norm_bias"_a = nb::none(), "out"_a, "out_bias"_a = nb::none(), "feed_forward_norm"_a,
             "feed_forward_norm_bias"_a = nb::none(), "up"_a, "up_bias"_a = nb::none(), "down"_a,
             "down_bias"_a = nb::none(), "window"_a = nb::none());
    nb::class_<CpuDecoder>(module, "Decoder")
        .def("__init__", &construct_decoder, "model"_a, "threads"_a, "instructions"_a = nb::none())
        .def_prop_ro("threads", &CpuDecoder::threads)
        .def_prop_ro("instructions", [](const CpuDecoder& decoder) { return decoder.kernels().name; })
        .def("forward", &forward, "cache"_a, "tokens"_a, "past"_a, "counts"_a, "blocks"_a, "previous"_a, "wanted"_a);
    module.def("instruction_sets", &instruction_sets);
}
