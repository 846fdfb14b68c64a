// What a module must do when it is loaded, so that Ctrl-C stops its long calls.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>

#include "bind/gil.h"

namespace llmfast {

// Remembers which thread handles signals, here and in a child that a fork makes.
inline void watch_main_thread() {
    namespace nb = nanobind;
    const nb::object main_thread = nb::module_::import_("threading").attr("main_thread")();
    main_thread_ident = nb::cast<unsigned long>(main_thread.attr("ident"));
    const nb::object os = nb::module_::import_("os");
    if (!nb::hasattr(os, "register_at_fork")) return;
    os.attr("register_at_fork")(nb::arg("after_in_child") =
                                    nb::cpp_function([] { main_thread_ident = PyThread_get_thread_ident(); }));
}

// A call that check_interrupt() stopped raises what the signal handler raised, which is set already.
inline void translate_stopped(const std::exception_ptr& exception, void*) {
    try {
        std::rethrow_exception(exception);
    } catch (const Stopped&) {
    }
}

// To be called once, when the module is loaded.
inline void register_signals() {
    nanobind::register_exception_translator(&translate_stopped);
    watch_main_thread();
}

}  // namespace llmfast
