// Releases Python's global interpreter lock for long work, so that other threads can run and Ctrl-C and exit work.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "system/interrupt.h"

namespace llmfast {

// The thread that Python runs signal handlers on. To be called when the module is loaded, and in the child of a fork.
inline std::atomic<unsigned long> main_thread_ident{0};
inline bool is_main_thread() { return PyThread_get_thread_ident() == main_thread_ident; }

// Returns the result of a function of Python's C API that may wait for the GIL, as a function that runs Python code
// may. While Python exits, it ends every other thread that waits for the GIL by unwinding its stack, which would abort
// the process in the first destructor or noexcept function, or run destructors of Python objects without the GIL. Such
// a thread sleeps instead until the process is gone, as it does in Python 3.14.
template <typename Call>
auto may_wait_for_gil(Call call) noexcept {
    try {
        return call();
    } catch (...) {  // glibc's forced unwinding by pthread_exit(), which must not leave this handler
        for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
}

inline void acquire_gil(PyThreadState* state) noexcept {
    may_wait_for_gil([state] { PyEval_RestoreThread(state); });
}

// A call of a Python function with one argument.
inline nanobind::object call_python(nanobind::handle function, nanobind::object argument) {
    PyObject* const result = may_wait_for_gil([&] { return PyObject_CallOneArg(function.ptr(), argument.ptr()); });
    if (!result) throw nanobind::python_error();
    return nanobind::steal(result);
}

// Runs Python's signal handlers, if this is the main thread. With the GIL. KeyboardInterrupt, or what else a handler
// raises, is thrown.
inline void check_signals() {
    if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
}

// Counts units of work with the GIL, such as items or bytes, and runs signal handlers once for many of them.
class SignalCounter {
  public:
    void add(size_t units) {
        if ((units_ += units) < kUnits) return;
        units_ = 0;
        check_signals();
    }

  private:
    static constexpr size_t kUnits = 1 << 16;
    size_t units_ = 0;
};

// The GIL is released while this exists. On the main thread, signals are still handled: work that calls
// check_interrupt() is stopped with the exception that a handler raises.
class WithoutGil {
  public:
    WithoutGil() : state_(PyEval_SaveThread()) {
        if (is_main_thread()) interrupt_.emplace([this] { return is_signaled(); });
    }
    ~WithoutGil() { acquire_gil(state_); }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

    // What `call` returns, called with the GIL on the thread that made this. What it throws, python_error among it,
    // comes through.
    template <typename Call>
    auto with_gil(Call call) {
        struct Held {
            PyThreadState*& state;
            explicit Held(PyThreadState*& released) : state(released) { acquire_gil(state); }
            ~Held() { state = PyEval_SaveThread(); }
        } held(state_);
        return call();
    }

  private:
    // Whether a signal handler raised an exception, which is then set.
    bool is_signaled() {
        return with_gil([] { return PyErr_CheckSignals() != 0; });
    }

    PyThreadState* state_;
    std::optional<Interrupt> interrupt_;
};

}  // namespace llmfast
