// Parses tiktoken's rank files: each line has a token's bytes in base64, a space and its rank.
#pragma once

#include <array>
#include <charconv>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace llmfast {

// The value of each base64 digit; 64 for other bytes.
constexpr std::array<uint8_t, 256> base64_values() {
    std::array<uint8_t, 256> values{};
    values.fill(64);
    constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < digits.size(); ++i) values[static_cast<uint8_t>(digits[i])] = static_cast<uint8_t>(i);
    return values;
}

// Decodes padded base64 into `bytes`; returns false if the text is not base64.
inline bool decode_base64(std::string_view text, std::string& bytes) {
    static constexpr std::array<uint8_t, 256> kValues = base64_values();
    if (text.empty() || text.size() % 4 != 0) return false;
    const size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
    bytes.resize(text.size() / 4 * 3);
    char* out = bytes.data();
    uint8_t wrong = 0;
    for (size_t at = 0; at < text.size(); at += 4) {
        uint32_t group = 0;
        for (size_t i = 0; i < 4; ++i) {
            const bool padded = at + i >= text.size() - padding;
            const uint8_t value = padded ? 0 : kValues[static_cast<uint8_t>(text[at + i])];
            wrong |= value;
            group = group << 6 | value;
        }
        *out++ = static_cast<char>(group >> 16);
        *out++ = static_cast<char>(group >> 8);
        *out++ = static_cast<char>(group);
    }
    if (wrong >= 64) return false;
    bytes.resize(bytes.size() - padding);
    return true;
}

// Calls `use(token, rank, line number)` for each line that is not empty. Throws std::invalid_argument, naming the line,
// for one that does not parse.
template <typename Use>
void for_each_rank(std::string_view contents, Use use) {
    std::string token;
    for (size_t number = 1; !contents.empty(); ++number) {
        std::string_view line = contents.substr(0, contents.find('\n'));
        contents.remove_prefix(std::min(line.size() + 1, contents.size()));
        if (line.ends_with('\r')) line.remove_suffix(1);
        if (line.empty()) continue;
        const size_t space = line.find(' ');
        uint32_t rank = 0;
        bool valid = space != line.npos && decode_base64(line.substr(0, space), token);
        if (valid) {
            const char* const end = line.data() + line.size();
            const auto parsed = std::from_chars(line.data() + space + 1, end, rank);
            valid = parsed.ec == std::errc() && parsed.ptr == end;
        }
        if (!valid) {
            throw std::invalid_argument("line " + std::to_string(number) + " is '" + std::string(line.substr(0, 80)) +
                                        "', not a token in base64 and its rank");
        }
        use(std::string_view(token), rank, number);
    }
}

}  // namespace llmfast
