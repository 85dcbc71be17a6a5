//! The hash by which llama.cpp's converter knows a tokenizer: that of the tokens of a fixed text.
//!
//! Reference: llama.cpp `conversion/base.py` (`get_vocab_base_pre`).

use sha2::{Digest, Sha256};

use super::auto::Auto;
use crate::tokenizer::library;

/// The text that is encoded. Pre-tokenizers split it in different ways.
const TEXT: &str = "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n\u{1f680} (normal) \u{1f636}\u{200d}\u{1f32b}\u{fe0f} (multiple emojis concatenated) \u{2705} \u{1f999}\u{1f999} 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 \u{1780}\u{17b6}\u{1793}\u{17cb}\u{178f}\u{17c2}\u{1796}\u{17b7}\u{179f}\u{17c1}\u{179f}\u{17a2}\u{17b6}\u{1785}\u{1f601} ?\u{6211}\u{60f3}\u{5728}apple\u{5de5}\u{4f5c}1314151\u{5929}\u{ff5e} ------======= \u{43d}\u{435}\u{449}\u{43e} \u{43d}\u{430} \u{411}\u{44a}\u{43b}\u{433}\u{430}\u{440}\u{441}\u{43a}\u{438} ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL";

/// The SHA-256 of the list of ids that the tokenizer makes of [`TEXT`].
///
/// # Errors
/// The error of the tokenizers library where it can't use the tokenizer.
pub(super) fn hash(auto: &Auto) -> tokenizers::Result<String> {
    let mut tokenizer = library::load(&serde_json::to_vec(&auto.json)?)?;
    tokenizer.with_truncation(None)?.with_padding(None);
    // Added tokens of other files are found in text too, as those of tokenizer.json are.
    let known = tokenizer.get_added_vocabulary().get_vocab().clone();
    let mut added: Vec<_> = auto.added.iter().filter(|(text, _)| !known.contains_key(*text)).collect();
    added.sort_by_key(|(_, token)| token.id);
    let token = |text: &String, special| tokenizers::AddedToken::from(text.clone(), special);
    let added = added.into_iter().map(|(text, added)| token(text, added.special).normalized(added.normalized));
    tokenizer.add_tokens(added.collect::<Vec<_>>())?;
    let encoding = library::guarded(|| tokenizer.encode(TEXT, true))?;
    // As Python prints a list of numbers.
    let ids: Vec<String> = encoding.get_ids().iter().map(u32::to_string).collect();
    let digest = Sha256::digest(format!("[{}]", ids.join(", ")));
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}
