// Passes over a row of logits, one row of the vocabulary at a time.
#pragma once

#include <cstdint>

namespace tightpack {

struct SamplingKernels {
    // The largest logit, and whether it is finite and no logit is NaN.
    struct Largest {
        float value;
        std::int32_t id;  // of equals the lowest
        bool sound;
    };
    Largest (*largest)(const float* logits, std::int64_t count);

    // exp((logit - largest) / temperature) of each; 0 below min_p. Returns the sum.
    double (*weigh)(const float* logits, std::int64_t count, float largest, float temperature, float min_p,
                    float* weights);

    // The ids of weights of at least `least`, ascending; returns how many. ids has room for count.
    std::int64_t (*collect)(const float* weights, std::int64_t count, float least, std::int32_t* ids);

    // Sum of exp(logit - largest).
    double (*sum_of_exponentials)(const float* logits, std::int64_t count, float largest);

    // How many of (logit - largest) - log_sum are above `than`, each operation rounded to float32.
    std::int64_t (*count_above)(const float* logits, std::int64_t count, float largest, float log_sum, float than);
};

}  // namespace tightpack
