// Ids as Python ints, both ways, without making an int object each time.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "growing.h"

namespace llmfast {

// The int objects of the ids 0..largest, made when first asked for and kept: a list of ids then costs a reference
// count an id, not an allocation. Needs the GIL.
class PythonInts {
  public:
    explicit PythonInts(uint32_t largest) : ints_(size_t{largest} + 1) {}
    ~PythonInts() {
        for (PyObject* made : ints_) Py_XDECREF(made);
    }
    PythonInts(const PythonInts&) = delete;
    PythonInts& operator=(const PythonInts&) = delete;

    nanobind::list list(const uint32_t* ids, size_t count) const {
        PyObject* list = PyList_New(static_cast<Py_ssize_t>(count));
        if (!list) throw nanobind::python_error();
        nanobind::list owned = nanobind::steal<nanobind::list>(list);
        for (size_t i = 0; i < count; ++i) PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), get(ids[i]));
        return owned;
    }

  private:
    PyObject* get(uint32_t id) const {
#if !defined(Py_GIL_DISABLED)
        PyObject*& kept = ints_[id];
        if (!kept) kept = make(id);
        Py_INCREF(kept);
        return kept;
#else
        return make(id);  // threads that count references of one object would wait for each other
#endif
    }
    static PyObject* make(uint32_t id) {
        PyObject* made = PyLong_FromUnsignedLong(id);
        if (!made) throw nanobind::python_error();
        return made;
    }

    mutable std::vector<PyObject*> ints_;
};

[[noreturn]] inline void throw_no_id(nanobind::handle value) {
    PyErr_Clear();
    PyErr_Format(PyExc_OverflowError, "%R is no token id: they are in 0..2**32 - 1", value.ptr());
    throw nanobind::python_error();
}

// One int as an id; OverflowError (tiktoken's) for what no id can be, TypeError for what is no int.
inline uint32_t as_id(PyObject* value) {
    if (PyLong_CheckExact(value)) {
        const long long id = PyLong_AsLongLong(value);
        if (id < 0 || id > UINT32_MAX) throw_no_id(value);
        return static_cast<uint32_t>(id);
    }
    PyObject* exact = PyNumber_Index(value);  // NumPy's integers and the like
    if (!exact) throw nanobind::python_error();
    const nanobind::object owner = nanobind::steal(exact);
    return as_id(exact);
}

template <typename T, typename Use>
void for_each_of(const Py_buffer& buffer, Use use) {
    const char* at = static_cast<const char*>(buffer.buf);
    const Py_ssize_t stride = buffer.strides ? buffer.strides[0] : buffer.itemsize;
    for (Py_ssize_t i = 0; i < buffer.shape[0]; ++i, at += stride) {
        T value;
        std::memcpy(&value, at, sizeof value);
        if (value < T{0} || static_cast<uint64_t>(value) > UINT32_MAX) throw_no_id(nanobind::int_(value));
        use(static_cast<uint32_t>(value));
    }
}

// An array of integers, through the buffer protocol; false where `tokens` is none.
template <typename Use>
bool for_each_in_array(nanobind::handle tokens, Use use) {
    if (!PyObject_CheckBuffer(tokens.ptr())) return false;
    Py_buffer buffer;
    if (PyObject_GetBuffer(tokens.ptr(), &buffer, PyBUF_STRIDES | PyBUF_FORMAT) < 0) {
        PyErr_Clear();
        return false;
    }
    struct Release {
        Py_buffer& buffer;
        ~Release() { PyBuffer_Release(&buffer); }
    } release{buffer};
    if (buffer.ndim != 1 || !buffer.format || buffer.format[0] == '\0' || buffer.format[1] != '\0') return false;
    switch (buffer.format[0]) {
        case 'H': for_each_of<uint16_t>(buffer, use); return true;
        case 'I': for_each_of<unsigned int>(buffer, use); return true;
        case 'L': for_each_of<unsigned long>(buffer, use); return true;
        case 'Q': for_each_of<unsigned long long>(buffer, use); return true;
        case 'i': for_each_of<int>(buffer, use); return true;
        case 'l': for_each_of<long>(buffer, use); return true;
        case 'q': for_each_of<long long>(buffer, use); return true;
        default: return false;
    }
}

// Calls `use(id)` for each int of a list, tuple, array or other sequence.
template <typename Use>
void for_each_id(nanobind::handle tokens, Use use) {
    if (!PyList_CheckExact(tokens.ptr()) && for_each_in_array(tokens, use)) return;
    nanobind::object fast = nanobind::steal(PySequence_Fast(tokens.ptr(), "tokens must be a sequence of ints"));
    if (!fast.is_valid()) throw nanobind::python_error();
    const nanobind::ft_object_guard guard(fast);  // from other threads, where there is no GIL
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast.ptr()); ++i) {
        use(as_id(PySequence_Fast_GET_ITEM(fast.ptr(), i)));
    }
}

}  // namespace llmfast
