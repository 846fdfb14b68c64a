# Sourced by the scripts of tests/ and fuzz/: the engine's files, all but those that need Python's headers.
core=()
for source in *.cpp; do
    case $source in bind* | nanobind_runtime.cpp) ;; *) core+=("$source") ;; esac
done
