//! What a model's name says: organization, base name, size, version and fine-tune.
//!
//! Reference: llama.cpp `gguf-py/gguf/metadata.py` (`get_model_id_components`, `id_to_title`).

/// The parts of a name such as `org/Base-7B-Instruct-v0.2`; `None` where a part is missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ModelId {
    pub(super) name: Option<String>,
    pub(super) organization: Option<String>,
    pub(super) basename: Option<String>,
    pub(super) finetune: Option<String>,
    pub(super) version: Option<String>,
    pub(super) size_label: Option<String>,
}

/// The meaning of one part of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Basename,
    SizeLabel,
    Finetune,
    Version,
    /// An element type such as `F16`, which is left out of the result.
    Type,
}

/// Splits `id` into its parts. A size that is far from `total`, the model's number of elements, is
/// assumed to be a context length and becomes part of the fine-tune's name. The total of an adapter
/// is negative.
pub(super) fn parse(id: &str, total: i128) -> ModelId {
    if id.contains(' ') {
        // A sentence, not a name in the hub's form.
        return ModelId { name: Some(id.to_owned()), ..ModelId::default() };
    }
    let (organization, full_name) = match id.split_once('/') {
        Some((organization, name)) => (Some(organization).filter(|o| !o.starts_with('.')), name),
        None => (None, id),
    };
    let mut parts: Vec<(String, Vec<Kind>)> =
        full_name.split('-').filter(|part| !part.is_empty()).map(|part| (part.to_owned(), Vec::new())).collect();
    for (i, (part, kinds)) in parts.iter_mut().enumerate() {
        if is_version(part) {
            kinds.push(Kind::Version);
        } else if is_type(part) {
            kinds.push(Kind::Type);
            *part = part.to_uppercase();
        } else if i > 0 && is_size(part) {
            let (text, kind) = size(part, total);
            *part = text;
            kinds.push(kind);
        } else if i > 0 && ["chat", "instruct", "vision", "lora"].iter().any(|w| part.eq_ignore_ascii_case(w)) {
            // The type of an adapter's file already says that it is one.
            let says_nothing = total < 0 && part.eq_ignore_ascii_case("lora");
            kinds.push(if says_nothing { Kind::Type } else { Kind::Finetune });
        }
    }
    // Next to a number, words such as "small" don't give a size.
    let has_number =
        parts.iter().any(|(part, kinds)| kinds.contains(&Kind::SizeLabel) && part.contains(char::is_numeric));
    if has_number {
        for (part, kinds) in &mut parts {
            if part.chars().all(char::is_alphabetic) {
                kinds.retain(|kind| *kind != Kind::SizeLabel);
            }
        }
    }
    let mut at_start = true;
    for (part, kinds) in &mut parts {
        let word = kinds.is_empty() && part.starts_with(char::is_alphabetic);
        if at_start && (word || kinds.contains(&Kind::Version)) {
            kinds.push(Kind::Basename);
        } else {
            at_start = false;
            if kinds.is_empty() {
                kinds.push(Kind::Finetune);
            }
        }
    }
    for (_, kinds) in parts.iter_mut().rev() {
        if !(kinds.contains(&Kind::Basename) && kinds.len() > 1) {
            break;
        }
        kinds.retain(|kind| *kind != Kind::Basename);
    }
    let join = |wanted: &dyn Fn(&[Kind]) -> bool| {
        let chosen: Vec<&str> =
            parts.iter().filter(|(_, kinds)| wanted(kinds)).map(|(part, _)| part.as_str()).collect();
        Some(chosen).filter(|chosen| !chosen.is_empty())
    };
    let size_label = join(&|kinds| kinds.contains(&Kind::SizeLabel)).map(|sizes| {
        let mut once: Vec<&str> = Vec::new();
        for size in sizes {
            if !once.contains(&size) {
                once.push(size);
            }
        }
        once.join("-")
    });
    let finetune = join(&|kinds| kinds.contains(&Kind::Finetune)).map(|parts| parts.join("-"));
    let version = join(&|kinds| kinds.contains(&Kind::Version) && !kinds.contains(&Kind::Basename));
    let version = version.map(|parts| parts.join("-"));
    // A base name alone would only repeat the name.
    let says_more = size_label.is_some() || finetune.is_some() || version.is_some();
    let basename = join(&|kinds| kinds.contains(&Kind::Basename)).filter(|_| says_more).map(|parts| parts.join("-"));
    ModelId {
        name: Some(full_name.to_owned()),
        organization: organization.map(str::to_owned),
        basename,
        finetune,
        version,
        size_label,
    }
}

/// Formats a size, such as `7b` as `7B` and `7b1` as `7.1B`, and says whether it can be this
/// model's size.
fn size(part: &str, total: i128) -> (String, Kind) {
    let mut text: Vec<char> = part.replace('_', ".").chars().collect();
    if let [head @ .., unit, digit] = text.as_slice()
        && digit.is_ascii_digit()
    {
        text = head.iter().chain(&['.', *digit, *unit]).copied().collect();
    }
    if let [.., before, unit] = text.as_mut_slice()
        && before.is_ascii_digit()
    {
        *unit = unit.to_ascii_uppercase();
    }
    let unit = text.last().copied().unwrap_or_default();
    let number: String = text[..text.len().saturating_sub(1)].iter().collect();
    let power = "KMBT".find(unit).map(|place| place as i32 + 1);
    if let (Ok(number), Some(power), true) = (number.parse::<f64>(), power, total != 0) {
        let label = number * 1000f64.powi(power);
        let far = match total {
            // An adapter may change only some of the layers, so the model may be larger than
            // `total` implies.
            ..0 => label < (-total / 8) as f64,
            _ => (label - total as f64).abs() > (7 * total / 8) as f64,
        };
        if far {
            let lowered = number_text(&text, unit.to_ascii_lowercase());
            return (lowered, Kind::Finetune);
        }
    }
    (text.into_iter().collect(), Kind::SizeLabel)
}

fn number_text(text: &[char], unit: char) -> String {
    text[..text.len() - 1].iter().copied().chain([unit]).collect()
}

/// Whether `part` matches `(v|iter)?\d+([.]\d+)*`, ignoring case.
fn is_version(part: &str) -> bool {
    let lower = part.to_ascii_lowercase();
    let digits = lower.strip_prefix("iter").or(lower.strip_prefix('v')).unwrap_or(&lower);
    digits.split('.').all(is_digits)
}

/// Whether `part` matches `i?q\d(_\w)*|b?fp?(16|32)`, ignoring case.
fn is_type(part: &str) -> bool {
    let lower = part.to_ascii_lowercase();
    let float = lower.strip_prefix('b').unwrap_or(&lower);
    let float = float.strip_prefix("fp").or(float.strip_prefix('f'));
    if matches!(float, Some("16" | "32")) {
        return true;
    }
    let quant: Vec<char> = lower.strip_prefix('i').unwrap_or(&lower).chars().collect();
    match quant.as_slice() {
        ['q', digit, rest @ ..] if digit.is_ascii_digit() => {
            let (pairs, left) = rest.as_chunks::<2>();
            left.is_empty() && pairs.iter().all(|[bar, c]| *bar == '_' && (c.is_alphanumeric() || *c == '_'))
        }
        _ => false,
    }
}

/// Whether `part` matches `([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl`,
/// ignoring case.
fn is_size(part: &str) -> bool {
    let lower = part.to_ascii_lowercase();
    if ["small", "mini", "medium", "large", "xl", "xxl"].contains(&lower.as_str()) {
        return true;
    }
    let rest = match lower.split_once('x') {
        Some((count, rest)) if is_digits(count) => rest,
        _ => lower.strip_prefix('a').unwrap_or(&lower),
    };
    let Some(unit) = rest.find(['k', 'm', 'b', 't']) else { return false };
    let after = &rest[unit + 1..];
    let number = &rest[..unit];
    let plain = match number.split_once(['.', '_']) {
        Some((whole, fraction)) => is_digits(whole) && is_digits(fraction),
        None => is_digits(number),
    };
    plain && (after.is_empty() || after.len() == 1 && is_digits(after))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Formats a name as a title: hyphens become spaces, lowercase words are capitalized, versions and
/// numbers stay.
pub(super) fn title(id: &str) -> String {
    let words: Vec<String> = id
        .trim()
        .replace('-', " ")
        .split_whitespace()
        .map(|word| {
            let lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
            let version = word.strip_prefix('v').is_some_and(|rest| rest.split('.').all(is_digits));
            if !lower || version || word.starts_with(|c: char| c.is_ascii_digit()) {
                return word.to_owned();
            }
            // A capital where letters begin, also within a word: "llama3x" becomes "Llama3X", as
            // with Python's title().
            let mut after_letter = false;
            let mut titled = String::with_capacity(word.len());
            for c in word.chars() {
                match after_letter {
                    true => titled.push(c),
                    false => titled.extend(capital(c)),
                }
                after_letter = c.is_lowercase() || c.is_uppercase();
            }
            titled
        })
        .collect();
    words.join(" ")
}

/// The capital form of a word's first letter. If that is several letters ("SS" for "ß"), only the
/// first of them stays a capital.
fn capital(c: char) -> impl Iterator<Item = char> {
    let mut upper = c.to_uppercase();
    upper.next().into_iter().chain(upper.flat_map(char::to_lowercase))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(id: &str, total: i128) -> String {
        let id = parse(id, total);
        [id.name, id.organization, id.basename, id.finetune, id.version, id.size_label]
            .map(|part| part.unwrap_or_else(|| "-".to_owned()))
            .join("|")
    }

    #[test]
    fn names_fall_apart_as_upstream_has_it() {
        let cases = [
            ("model", 1_300_000, "model|-|-|-|-|-"),
            ("Mistral-7B-Instruct-v0.2", 7_241_732_096, "Mistral-7B-Instruct-v0.2|-|Mistral|Instruct|v0.2|7B"),
            ("meta-llama/Llama-3.2-1B", 1_235_814_400, "Llama-3.2-1B|meta-llama|Llama-3.2|-|-|1B"),
            ("Qwen2.5-0.5B-Instruct", 494_032_768, "Qwen2.5-0.5B-Instruct|-|Qwen2.5|Instruct|-|0.5B"),
            ("Phi-3-mini-128k-instruct", 3_821_079_552, "Phi-3-mini-128k-instruct|-|Phi-3|128k-instruct|-|mini"),
            ("bloom-7b1", 7_069_016_064, "bloom-7b1|-|bloom|-|-|7.1B"),
            ("A model of mine", 1, "A model of mine|-|-|-|-|-"),
            ("../Llama-7b", 7_000_000_000, "Llama-7b|-|Llama|-|-|7B"),
            ("base-q4_0-fp16", 1, "base-q4_0-fp16|-|-|-|-|-"),
            ("Llama-3-8B-sql-lora", -20_000_000, "Llama-3-8B-sql-lora|-|Llama-3|sql|-|8B"),
            ("Llama-3-8B-sql-lora", 8_030_261_248, "Llama-3-8B-sql-lora|-|Llama-3|sql-lora|-|8B"),
        ];
        for (id, total, expected) in cases {
            assert_eq!(show(id, total), expected);
        }
    }

    #[test]
    fn titles_capitalize_words_but_not_versions() {
        assert_eq!(title("tiny-llama3x-v1.5-7b-GPT"), "Tiny Llama3X v1.5 7b GPT");
        assert_eq!(title("model"), "Model");
        assert_eq!(title("ßa-ﬁx"), "Ssa Fix");
    }
}
