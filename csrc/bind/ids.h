// Converts ids to and from Python ints, without making a new int object each time.
#pragma once

#include <nanobind/nanobind.h>
#if PY_VERSION_HEX < 0x030B0000
#include <longintrepr.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>

#include "bind/gil.h"
#include "system/buffer.h"
#include "system/prefetch.h"
#include "vocabulary/vocabulary.h"

namespace llmfast {

// A new reference as an object; throws the exception that is set where there is none.
inline nanobind::object checked(PyObject* made) {
    if (!made) throw nanobind::python_error();
    return nanobind::steal(made);
}

// The int objects of ids. Each is made when it is first needed and kept until the process ends: 40 bytes for every id
// that was ever in a list. Each has more references than lists could ever release (from Python 3.12 on it is immortal),
// so that an id in a list costs no reference counting and threads without a GIL do not contend for it. They are made in
// the order of their first use, so that those in use lie together: made in the order of ids, lists take a fifth longer.
class KeptInts {
  public:
    // Needs the GIL, where there is one. `id` is at most kLargestId.
    static PyObject* get(uint32_t id) {
        PyObject* const kept = ints_[id].load(std::memory_order_acquire);
        return kept ? kept : make(id);
    }

  private:
    static_assert(sizeof(Py_ssize_t) == 8, "2**30 references, the most there are elsewhere, are too few");
    static constexpr Py_ssize_t kReferences = PY_SSIZE_T_MAX >> 1;  // its lower half, all ones, says immortal to 3.12

    static PyObject* make(uint32_t id) {
        static std::mutex guard;
        const std::lock_guard lock(guard);
        if (PyObject* const kept = ints_[id]) return kept;
        PyObject* const made = checked(PyLong_FromUnsignedLong(id)).release().ptr();
        Py_SET_REFCNT(made, kReferences);
        return ints_[id] = made;
    }

    // 128 MB of address space, of which only the pages that are used take memory.
    static inline std::atomic<PyObject*> ints_[kLargestId + 1] = {};
};

constexpr Py_ssize_t kIdsBetweenSignals = 1 << 18;  // a millisecond or two of work

inline nanobind::list list_of(const IdBuffer& ids) {
    const Py_ssize_t count = static_cast<Py_ssize_t>(ids.size());
    nanobind::list list = nanobind::borrow<nanobind::list>(checked(PyList_New(count)));
    if (count > kIdsBetweenSignals) PyObject_GC_UnTrack(list.ptr());  // a signal handler must not see it unfinished
    for (Py_ssize_t i = 0; i < count; ++i) {
        if (i % kIdsBetweenSignals == 0 && i > 0) check_signals();
        PyList_SET_ITEM(list.ptr(), i, KeptInts::get(ids.data()[i]));
    }
    if (count > kIdsBetweenSignals) PyObject_GC_Track(list.ptr());
    return list;
}

[[noreturn]] inline void throw_no_id(nanobind::handle value) {
    PyErr_Clear();
    PyErr_Format(PyExc_OverflowError, "%R is not a token id: they are integers from 0 to 2**32 - 1", value.ptr());
    throw nanobind::python_error();
}

// The value of an int of one digit, as that of an id nearly always is; -1 for any other.
inline int64_t small_value(PyObject* value) {
    PyLongObject* const number = reinterpret_cast<PyLongObject*>(value);
#if PY_VERSION_HEX >= 0x030C0000
    return PyUnstable_Long_IsCompact(number) ? PyUnstable_Long_CompactValue(number) : -1;
#else
    const Py_ssize_t digits = Py_SIZE(value);
    return digits == 1 ? int64_t{number->ob_digit[0]} : digits == 0 ? 0 : -1;
#endif
}

// One int as an id; OverflowError, as in tiktoken, for an int that cannot be one, TypeError for anything else.
inline uint32_t as_id(PyObject* value) {
    if (PyLong_CheckExact(value)) {
        const int64_t small = small_value(value);
        if (small >= 0) return static_cast<uint32_t>(small);
        const long long id = PyLong_AsLongLong(value);
        if (id < 0 || id > UINT32_MAX) throw_no_id(value);
        return static_cast<uint32_t>(id);
    }
    const nanobind::object kept = nanobind::borrow(value);
    PyObject* const index = may_wait_for_gil([value] {  // of NumPy's integers and the like
        return PyIndex_Check(value) ? PyNumber_Index(value) : nullptr;
    });
    if (!index && (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_TypeError))) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "a token id must be an int, got %.200s", Py_TYPE(value)->tp_name);
    }
    return as_id(checked(index).ptr());
}

template <typename T>
void append_items(const Py_buffer& buffer, IdBuffer& ids) {
    const char* at = static_cast<const char*>(buffer.buf);
    const Py_ssize_t stride = buffer.strides ? buffer.strides[0] : buffer.itemsize;
    const size_t count = static_cast<size_t>(buffer.shape[0]);
    uint32_t* const out = ids.prepare(count);
    constexpr size_t kWindow = static_cast<size_t>(kIdsBetweenSignals);
    for (size_t i = 0; i < count;) {
        if (i > 0) check_signals();
        for (const size_t end = std::min(i + kWindow, count); i < end; ++i, at += stride) {
            T value;
            std::memcpy(&value, at, sizeof value);
            if (value < T{0} || static_cast<uint64_t>(value) > UINT32_MAX) throw_no_id(nanobind::int_(value));
            out[i] = static_cast<uint32_t>(value);
        }
    }
    ids.commit(count);
}

// Appends an array of integers, through the buffer protocol; false where `tokens` is not such an array.
inline bool append_array(nanobind::handle tokens, IdBuffer& ids) {
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
        case 'H': append_items<uint16_t>(buffer, ids); return true;
        case 'I': append_items<unsigned int>(buffer, ids); return true;
        case 'L': append_items<unsigned long>(buffer, ids); return true;
        case 'Q': append_items<unsigned long long>(buffer, ids); return true;
        case 'i': append_items<int>(buffer, ids); return true;
        case 'l': append_items<long>(buffer, ids); return true;
        case 'q': append_items<long long>(buffer, ids); return true;
        default: return false;
    }
}

// The ids of a list, tuple, array or other sequence of ints.
inline IdBuffer ids_of(nanobind::handle tokens) {
    IdBuffer ids;
    if (!PyList_CheckExact(tokens.ptr()) && append_array(tokens, ids)) return ids;
    if (!PySequence_Check(tokens.ptr()) && !PyIter_Check(tokens.ptr())) {  // a set, say, has no order
        PyErr_Format(PyExc_TypeError, "tokens must be a sequence of ints, got %.200s", Py_TYPE(tokens.ptr())->tp_name);
        throw nanobind::python_error();
    }
    const nanobind::object fast =
        checked(may_wait_for_gil([&] { return PySequence_Fast(tokens.ptr(), "tokens must be a sequence of ints"); }));
    const nanobind::ft_object_guard guard(fast);  // from other threads, where there is no GIL
    constexpr Py_ssize_t kAhead = 48;  // ints are objects all over memory: asked for early, a list takes a sixth less
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(fast.ptr());
    uint32_t* const out = ids.prepare(static_cast<size_t>(count));
    Py_ssize_t i = 0;
    for (; i < count; ++i) {
        if (i % kIdsBetweenSignals == 0 && i > 0) check_signals();
        const Py_ssize_t left = PySequence_Fast_GET_SIZE(fast.ptr()) - i;  // an __index__ may shorten a list
        if (left <= 0) break;
        PyObject** const items = PySequence_Fast_ITEMS(fast.ptr()) + i;
        if (left > kAhead) prefetch_line(items[kAhead]);
        out[i] = as_id(items[0]);
    }
    ids.commit(static_cast<size_t>(i));
    return ids;
}

}  // namespace llmfast
