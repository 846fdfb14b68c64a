// Encodes many documents on several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "encode/encoder.h"
#include "vocabulary/specials.h"

namespace llmfast {

// Appends the ids of `text`, in which the enabled special tokens are recognized. Returns how many tokens the last piece
// has: 0 if the text ends with a special token.
size_t encode_with_specials(const Encoder& encoder, const Specials& specials, const Specials::Enabled& enabled,
                            std::string_view text, IdBuffer& ids);

// The concatenated ids of all documents, each followed by `separator` if there is one, as uint16_t (if they fit) or
// uint32_t. Document i is [offsets[i], offsets[i + 1]).
template <typename Id>
Buffer<Id> encode_documents(const Encoder& encoder, const std::vector<std::string_view>& documents,
                            std::optional<uint32_t> separator, size_t threads, int64_t* offsets);

}  // namespace llmfast
