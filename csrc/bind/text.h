// Text from Python objects, as UTF-8 that stays what it is while the engine works.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bind/gil.h"
#include "bind/ids.h"

namespace llmfast {

inline const char* kind_of(nanobind::handle value) { return Py_TYPE(value.ptr())->tp_name; }

[[noreturn]] inline void throw_type_error(const std::string& message) { throw nanobind::type_error(message.c_str()); }

// The UTF-8 of a str, which caches it unless it is ASCII. A str with surrogates has none: pairs are joined and lone
// ones replaced, as tiktoken does, and `owner` keeps the result.
inline std::string_view utf8_of(nanobind::handle text, nanobind::object& owner) {
    if (!PyUnicode_Check(text.ptr())) throw_type_error(std::string("text must be a str, got ") + kind_of(text));
    Py_ssize_t length = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &length);
    if (!data) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) throw nanobind::python_error();
        PyErr_Clear();
        owner = text.attr("encode")("utf-16", "surrogatepass").attr("decode")("utf-16", "replace");
        data = PyUnicode_AsUTF8AndSize(owner.ptr(), &length);
        if (!data) throw nanobind::python_error();
    }
    return {data, static_cast<size_t>(length)};
}

// The contents of a bytes object; `what` says in an error which argument it is.
inline std::string_view bytes_of(nanobind::handle value, const char* what) {
    if (!PyBytes_Check(value.ptr())) throw_type_error(std::string(what) + " must be bytes, got " + kind_of(value));
    return {PyBytes_AS_STRING(value.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(value.ptr()))};
}

// Whether nothing in this process changes the memory of a view: that of a bytes object, or of a memory map that was
// opened for reading only, also where NumPy's arrays lie between. A view that is read-only itself says too little: it
// may be one of a bytearray.
inline bool is_constant(nanobind::handle view) {
    if (!PyMemoryView_GET_BUFFER(view.ptr())->readonly) return false;
    static constexpr int kMostOwners = 8;
    nanobind::object owner = view.attr("obj");
    for (int i = 0; i < kMostOwners; ++i) {
        if (PyBytes_Check(owner.ptr())) return true;
        if (PyMemoryView_Check(owner.ptr())) {
            owner = owner.attr("obj");
        } else if (nanobind::hasattr(owner, "base")) {
            owner = owner.attr("base");
        } else {
            const nanobind::object map = nanobind::module_::import_("mmap").attr("mmap");
            if (!nanobind::isinstance(owner, map)) return false;
            const nanobind::object whole = checked(PyMemoryView_FromObject(owner.ptr()));
            return PyMemoryView_GET_BUFFER(whole.ptr())->readonly;
        }
    }
    return false;
}

// A view of UTF-8 in bytes, a bytearray, a memoryview, a memory map and the like, which `owner` keeps from moving.
inline std::string_view buffer_of(nanobind::handle value, nanobind::object& owner) {
    if (PyBytes_Check(value.ptr())) return bytes_of(value, "text");
    if (!PyObject_CheckBuffer(value.ptr())) {
        throw_type_error(std::string("text must be a str or bytes, got ") + kind_of(value));
    }
    owner = checked(PyMemoryView_FromObject(value.ptr()));
    const Py_buffer* const buffer = PyMemoryView_GET_BUFFER(owner.ptr());
    if (buffer->itemsize != 1) {
        throw_type_error("text must have items of one byte, got a buffer of " + std::to_string(buffer->itemsize));
    }
    if (!PyBuffer_IsContiguous(buffer, 'C')) throw nanobind::value_error("text must be contiguous in memory");
    return {static_cast<const char*>(buffer->buf), static_cast<size_t>(buffer->len)};
}

// A str, or UTF-8 in a buffer. What others could change while the engine works without the GIL is copied: pieces are
// read several times, and must be the same each time. `owner` keeps what the result is in.
inline std::string_view text_of(nanobind::handle value, nanobind::object& owner) {
    if (PyUnicode_Check(value.ptr())) return utf8_of(value, owner);
    const std::string_view text = buffer_of(value, owner);
    if (PyBytes_Check(value.ptr()) || is_constant(owner)) return text;
    nanobind::object copy = checked(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(text.size())));
    char* const out = PyBytes_AS_STRING(copy.ptr());
    constexpr size_t kWindow = 1 << 20;
    for (size_t at = 0; at < text.size(); at += kWindow) {
        if (at > 0) check_signals();
        std::memcpy(out + at, text.data() + at, std::min(kWindow, text.size() - at));
    }
    owner = std::move(copy);
    return bytes_of(owner, "text");
}

// The (key, value) tuples of a dict, in a list that keeps them: signal handlers, the garbage collector and other
// threads may change the dict while its items are read.
inline nanobind::list items_of(nanobind::handle dict) {
    return nanobind::steal<nanobind::list>(checked(PyDict_Items(dict.ptr())).release());
}

// What PyUnicode_DecodeUTF8 returns, but signals are handled while a long text is decoded.
inline nanobind::object decoded(const char* utf8, Py_ssize_t size, const char* errors) {
    constexpr Py_ssize_t kWindow = 1 << 22;
    if (size > kWindow) {
        nanobind::list parts;
        for (Py_ssize_t at = 0, consumed = 0; at < size; at += consumed) {
            check_signals();
            consumed = std::min(kWindow, size - at);
            Py_ssize_t* const whole_characters = consumed < size - at ? &consumed : nullptr;
            PyObject* const part = PyUnicode_DecodeUTF8Stateful(utf8 + at, consumed, errors, whole_characters);
            if (!part) break;
            parts.append(nanobind::steal(part));
        }
        if (!PyErr_Occurred()) return checked(PyUnicode_Join(nanobind::str("").ptr(), parts.ptr()));
        if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) throw nanobind::python_error();
        PyErr_Clear();  // its positions are those in a part: the whole text has the right ones
    }
    return checked(PyUnicode_DecodeUTF8(utf8, size, errors));
}

// Each text of a sequence, by utf8_of or text_of; `what` names the argument in errors.
inline std::vector<std::string_view> texts_of(nanobind::handle sequence, const char* what,
                                              std::vector<nanobind::object>& owners,
                                              std::string_view (*one)(nanobind::handle, nanobind::object&)) {
    constexpr size_t kWindow = 1 << 20;  // bytes between two checks for signals
    if (PyUnicode_Check(sequence.ptr()) || PyBytes_Check(sequence.ptr())) {
        throw_type_error(std::string(what) + " must be a sequence of texts, got one " + kind_of(sequence) +
                         ": put it in a list");
    }
    // A tuple keeps the texts, whatever another thread does to a list while this one works without the GIL.
    PyObject* const tuple = may_wait_for_gil([&] { return PySequence_Tuple(sequence.ptr()); });
    if (!tuple && PyErr_ExceptionMatches(PyExc_TypeError) && !PyObject_HasAttrString(sequence.ptr(), "__iter__")) {
        PyErr_Clear();
        throw_type_error(std::string(what) + " must be a sequence of texts, got " + kind_of(sequence));
    }
    const nanobind::object all = checked(tuple);
    owners.push_back(all);
    std::vector<std::string_view> texts(static_cast<size_t>(PyTuple_GET_SIZE(all.ptr())));
    size_t bytes = 0;
    for (size_t i = 0; i < texts.size(); ++i) {
        nanobind::object owner;
        texts[i] = one(PyTuple_GET_ITEM(all.ptr(), static_cast<Py_ssize_t>(i)), owner);
        if (owner.is_valid()) owners.push_back(owner);
        bytes += texts[i].size() + 64;
        if (bytes < kWindow) continue;
        check_signals();
        bytes = 0;
    }
    return texts;
}

}  // namespace llmfast
