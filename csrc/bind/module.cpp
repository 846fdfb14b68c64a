#include "bind/module.h"

#include <exception>

#include "bind/gil.h"

namespace nb = nanobind;

namespace {

// Remembers which thread handles signals, here and in a child that a fork makes.
void watch_main_thread() {
    const nb::object main_thread = nb::module_::import_("threading").attr("main_thread")();
    llmfast::main_thread_ident = nb::cast<unsigned long>(main_thread.attr("ident"));
    const nb::object os = nb::module_::import_("os");
    if (!nb::hasattr(os, "register_at_fork")) return;
    os.attr("register_at_fork")(nb::arg("after_in_child") =
                                    nb::cpp_function([] { llmfast::main_thread_ident = PyThread_get_thread_ident(); }));
}

// A call that check_interrupt() stopped raises what the signal handler raised, which is set already.
void translate_stopped(const std::exception_ptr& exception, void*) {
    try {
        std::rethrow_exception(exception);
    } catch (const llmfast::Stopped&) {
    }
}

}  // namespace

NB_MODULE(_bpe, module) {
    module.doc() = "llmfast's byte-pair-encoding engine";
    // Objects that a thread still holds when the program ends are no leak worth a warning.
    nb::set_leak_warnings(false);
    nb::register_exception_translator(&translate_stopped);
    watch_main_thread();
    bind_encoding(module);
    bind_splitting(module);
    bind_training(module);
}
