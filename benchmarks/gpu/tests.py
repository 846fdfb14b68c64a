"""The GPU tests that a call runs first: each op against its definition, and what only a GPU can show. With the marker
``gpu`` they are some 160; those that compile with PyTorch, or that fill the memory, come with the others later."""

from __future__ import annotations

from ..results import ROOT

CHOSEN = [
    "tests/kernels/test_on_gpu.py::test_captures_into_a_cuda_graph",
    "tests/kernels/test_on_gpu.py::test_does_not_synchronise",
    "tests/kernels/test_on_gpu.py::test_runs_on_the_stream_that_is_current",
    "tests/kernels/test_attention.py::test_every_length",
    "tests/kernels/test_attention.py::test_eight_heads_on_one_key_head",
    "tests/kernels/test_attention.py::test_equal_bits_in_every_run",
    "tests/kernels/test_attention.py::test_rows_that_see_nothing",
    "tests/kernels/test_attention.py::test_packed_equals_one_by_one",
    "tests/kernels/test_attention.py::test_kernels_and_reference_drop_the_same",
    "tests/kernels/test_attention_hopper.py::test_on_a_chip_all_forms_agree",
    "tests/kernels/test_attention_decode.py::test_decode_is_the_last_rows_of_forward",
    "tests/kernels/test_attention_decode.py::test_shuffled_pages_give_the_bits_of_a_contiguous_cache",
    "tests/kernels/test_attention_block_mask.py::test_every_pair_of_options",
    "tests/kernels/test_attention_block_mask.py::test_queries_whose_blocks_are_all_hidden",
    "tests/kernels/test_attention_options.py::test_alibi",
    "tests/kernels/test_attention_options.py::test_only_tokens_that_count_are_seen",
    "tests/kernels/test_attention_options.py::test_decoding_with_alibi_and_padding",
    "tests/kernels/test_attention_options.py::test_pages_of_packed_sequences",
    "tests/kernels/test_linear_cross_entropy.py::test_as_exact_as_torch",
    "tests/kernels/test_linear_cross_entropy.py::test_captures_into_a_cuda_graph",
    "tests/kernels/test_cross_entropy.py::test_any_shape_stride_dtype_and_reduction",
    "tests/kernels/test_cross_entropy.py::test_every_option_and_vocabularies_longer_than_a_block",
    "tests/kernels/test_soft_cross_entropy.py::test_as_exact_as_torch",
    "tests/kernels/test_loss_figures.py::test_equal_logits_predict_the_first_class",
    "tests/kernels/test_loss_figures.py::test_vocabularies_longer_than_a_block_predict_across_blocks",
    "tests/kernels/test_vocab_parallel.py::test_alone_in_its_group_it_is_cross_entropy",
    "tests/kernels/test_linear_kl_divergence.py::test_two_runs_have_equal_bits_and_inputs_stay",
    "tests/kernels/test_nf4_linear.py::test_every_kernel_with_everything_on",
    "tests/kernels/test_nf4_linear.py::test_on_a_gpu_in_both_16_bit_dtypes",
    "tests/kernels/test_nf4_format.py::test_kernel_gives_the_numbers_of_the_definition",
    "tests/kernels/test_int8.py::test_large_codes_do_not_overflow_float16",
    "tests/kernels/test_norm.py::test_any_shape_stride_and_dtype",
    "tests/kernels/test_norm.py::test_rows_longer_than_one_program_holds",
    "tests/kernels/test_activation.py::test_gated_of_any_shape_stride_and_dtype",
    "tests/kernels/test_activation.py::test_gelu_of_any_shape_stride_and_dtype",
    "tests/kernels/test_rope.py::test_any_shape_stride_and_dtype",
    "tests/kernels/test_rope.py::test_sections_of_three_axes",
    "tests/kernels/test_adamw.py::test_kernels_are_as_exact_as_pytorch",
    "tests/kernels/test_adamw.py::test_many_tensors_of_mixed_sizes",
    "tests/kernels/test_adamw.py::test_captures_into_a_cuda_graph_and_does_not_synchronise",
    "tests/kernels/test_adamw_8bit.py::test_kernels_code_as_the_definition",
    "tests/kernels/test_newton_schulz.py::test_bfloat16_on_a_gpu",
]


def gpu_test_files() -> list[str]:
    """Only files with GPU tests are collected, because others may need libraries that are missing."""
    kernels = sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
    others = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if path not in kernels]
    marked = [path for path in others if "mark.gpu" in path.read_text(encoding="utf-8")]
    return [path.relative_to(ROOT).as_posix() for path in (*kernels, *marked)]
