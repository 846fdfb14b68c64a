// A vocabulary and its special tokens from Python objects.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bind/text.h"
#include "vocabulary/rank_file.h"
#include "vocabulary/specials.h"
#include "vocabulary/vocabulary.h"

namespace llmfast {

// An int from a dict of ids; ValueError for one that no table has room for, TypeError for anything else.
inline uint32_t table_id(nanobind::handle value, const char* what) {
    if (!PyLong_Check(value.ptr()) && !PyIndex_Check(value.ptr())) {
        throw_type_error(std::string(what) + " must have ints as values, got " + kind_of(value));
    }
    const nanobind::object number = checked(PyNumber_Index(value.ptr()));
    const unsigned long long id = PyLong_AsUnsignedLongLong(number.ptr());
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) throw nanobind::python_error();
        PyErr_Clear();
    } else if (id <= kLargestId) {
        return static_cast<uint32_t>(id);
    }
    throw nanobind::value_error(("the id " + std::string(nanobind::str(number).c_str()) + " in " + what +
                                 " is not in 0.." + std::to_string(kLargestId))
                                    .c_str());
}

// The tokens of a dict of bytes to int, or of the contents of a rank file, with their ids.
class Tokens {
  public:
    explicit Tokens(nanobind::handle ranks) {
        if (PyDict_Check(ranks.ptr())) {
            take(ranks);
        } else if (PyBytes_Check(ranks.ptr())) {
            parse(bytes_of(ranks, "mergeable_ranks"));
        } else {
            throw_type_error(std::string("mergeable_ranks must be a dict of bytes to int, got ") + kind_of(ranks));
        }
    }
    Tokens(const Tokens&) = delete;
    Tokens& operator=(const Tokens&) = delete;

    std::vector<std::string_view> bytes;
    std::vector<uint32_t> ids;

  private:
    void take(nanobind::handle ranks) {
        kept_ = items_of(ranks);
        const Py_ssize_t count = PyList_GET_SIZE(kept_.ptr());
        bytes.reserve(static_cast<size_t>(count));
        ids.reserve(static_cast<size_t>(count));
        SignalCounter counter;
        for (Py_ssize_t i = 0; i < count; ++i) {
            counter.add(16);
            PyObject* const item = PyList_GET_ITEM(kept_.ptr(), i);
            bytes.push_back(bytes_of(PyTuple_GET_ITEM(item, 0), "each token of mergeable_ranks"));
            ids.push_back(table_id(PyTuple_GET_ITEM(item, 1), "mergeable_ranks"));
        }
    }

    void parse(std::string_view contents) {
        std::vector<size_t> ends = {0};
        SignalCounter counter;
        for_each_rank(contents, [&](std::string_view token, uint32_t rank, size_t) {
            counter.add(16 + token.size());
            parsed_ += token;
            ends.push_back(parsed_.size());
            ids.push_back(rank);
        });
        bytes.resize(ids.size());
        for (size_t i = 0; i < ids.size(); ++i) bytes[i] = {parsed_.data() + ends[i], ends[i + 1] - ends[i]};
    }

    nanobind::object kept_;
    std::string parsed_;
};

// The special tokens of a dict of str to int, in its order.
inline std::vector<Special> specials_from(nanobind::handle specials) {
    if (!PyDict_Check(specials.ptr())) {
        throw_type_error(std::string("special_tokens must be a dict of str to int, got ") + kind_of(specials));
    }
    std::vector<Special> all;
    SignalCounter counter;
    for (const nanobind::handle item : items_of(specials)) {
        const nanobind::handle text = PyTuple_GET_ITEM(item.ptr(), 0), id = PyTuple_GET_ITEM(item.ptr(), 1);
        if (!PyUnicode_Check(text.ptr())) {
            throw_type_error(std::string("special_tokens must be a dict of str to int, but has a key of type ") +
                             kind_of(text));
        }
        counter.add(16);
        nanobind::object owner;
        all.push_back({std::string(utf8_of(text, owner)), table_id(id, "special_tokens")});
    }
    return all;
}

}  // namespace llmfast
