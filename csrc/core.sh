# Sourced by the scripts of tests/ and fuzz/, which run in csrc/: the engine and the decoder without bind/, which needs Python's headers.
core=(decoder/*.cpp decoder/kernels/*.cpp encode/*.cpp merge/*.cpp pretokenize/*.cpp system/*.cpp train/*.cpp vocabulary/*.cpp)

compile_core() { # compile_core FOLDER COMPILER FLAGS...: compiles each file to an object file in FOLDER, several at a time
    local folder=$1
    shift
    printf '%s\0' "${core[@]}" | xargs -0 -I{} -P "$(getconf _NPROCESSORS_ONLN)" bash -c \
        'source=$1 folder=$2; shift 2; "$@" -ffp-contract=off -I. -c "$source" -o "$folder/$(basename "$source" .cpp).o"' _ {} "$folder" "$@"
}
