//! The hub's answers about a model and its files, and the checks on them: no name becomes a path unchecked.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;

use serde::Deserialize;

use super::HubSettings;
use super::address::quoted;
use super::client::{Answer, Client, Question, broken_io};
use super::fault::Fault;
use super::files::leads_out;
use super::name::{Name, is_commit};

/// The longest answer about a model in bytes. A repository of a million files needs less.
const MAX_ANSWER: u64 = 256 << 20;
/// The longest ETag of a file. File names have at most 255 bytes, and the cache appends a suffix to the ETag.
const MAX_ETAG: usize = 200;

/// A model at one commit.
#[derive(Debug)]
pub(super) struct ModelInfo {
    pub(super) commit: String,
    /// The names of all files, none of them outside the folder.
    pub(super) names: Vec<String>,
    /// The hub's answers about some of the files.
    pub(super) files: RefCell<HashMap<String, FileInfo>>,
    /// The beginnings of some of the files, which were fetched with their headers.
    pub(super) starts: RefCell<HashMap<String, Vec<u8>>>,
}

/// The facts about a file. The hub is asked once, and only this answer is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileInfo {
    /// The ETag without quotes, which is the file's name in the cache.
    pub(super) etag: String,
    /// The length, if the hub gives it.
    pub(super) size: Option<u64>,
    /// The address to request the content from.
    pub(super) address: String,
}

#[derive(Deserialize)]
struct RawInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Asks the hub about the model at `revision`. `tries` says whether to ask again if the hub fails.
pub(super) fn model(
    client: &Client<'_>,
    settings: &HubSettings,
    name: &Name,
    revision: &str,
    tries: bool,
) -> Result<ModelInfo, Fault> {
    let address = format!("{}/api/models/{}/revision/{}", settings.endpoint, name.id, quoted(revision, b""));
    let ask = || {
        let answer = client.ask(Question::Model, &address, None)?;
        let page = answer.is_page();
        let (address, body) = answer.into_body();
        let mut bytes = Vec::new();
        let read = body.take(MAX_ANSWER + 1).read_to_end(&mut bytes);
        read.map_err(|error| broken_io(&address, &error, settings.etag_timeout))?;
        Ok((address, page, bytes))
    };
    let (address, page, bytes) = match tries {
        true => client.with_tries(&name.text, ask)?,
        false => ask()?,
    };
    if bytes.len() as u64 > MAX_ANSWER {
        return Err(Fault::odd(&address, format_args!("at most {MAX_ANSWER} bytes about a model"), "more"));
    }
    let start = bytes.iter().find(|b| !b.is_ascii_whitespace());
    if page || start == Some(&b'<') {
        return Err(Fault::page(&address));
    }
    let info: RawInfo = serde_json::from_slice(&bytes).map_err(|error| {
        Fault::odd(
            &address,
            "JSON with a model's commit and files",
            format_args!("something else: {}", crate::json::plain(&error)),
        )
    })?;
    if !is_commit(&info.sha) {
        let found = format!("{:?}", info.sha);
        return Err(Fault::odd(&address, "a commit of 40 hexadecimal digits", found));
    }
    if is_commit(revision) && !revision.eq_ignore_ascii_case(&info.sha) {
        return Err(Fault::odd(&address, format_args!("commit {revision}"), format_args!("{:?}", info.sha)));
    }
    let mut names: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    if let Some(name) = names.iter().find(|name| leads_out(name)) {
        return Err(Fault::odd(&address, "names of files that stay in their folder", format_args!("{name:?}")));
    }
    names.sort_unstable();
    names.dedup();
    Ok(ModelInfo { commit: info.sha, names, files: RefCell::default(), starts: RefCell::default() })
}

/// Asks the hub about `file` at `commit`.
pub(super) fn file(
    client: &Client<'_>,
    name: &Name,
    address: &str,
    commit: &str,
    file: &str,
) -> Result<FileInfo, Fault> {
    client.with_tries(&format!("{}: {file}", name.text), || {
        // The request is for one byte, so that a server that answers with the file itself sends little.
        let answer = match client.ask(Question::File, address, Some("bytes=0-0")) {
            // An empty file has no first byte.
            Err(Fault::Status { status: 416, .. }) => client.ask(Question::File, address, None)?,
            answer => answer?,
        };
        let info = read_file(&answer, address, commit)?;
        if !answer.is_redirect() {
            // After the answer is read to its end, its connection can serve the next request.
            let _ = std::io::copy(&mut answer.into_body().1.take(1 << 12), &mut std::io::sink());
        }
        Ok(info)
    })
}

fn read_file(answer: &Answer, asked: &str, commit: &str) -> Result<FileInfo, Fault> {
    let odd = |expected: &str, found: &str| Err(Fault::odd(&answer.address, expected, format_args!("{found:?}")));
    match answer.header("x-repo-commit") {
        None if answer.is_page() => return Err(Fault::page(&answer.address)),
        None => return Err(Fault::odd(&answer.address, "a hub's answer, with X-Repo-Commit", "none")),
        Some(other) if other != commit => return odd(&format!("the file of commit {commit}"), other),
        Some(_) => {}
    }
    let linked = answer.header("x-linked-etag");
    let Some(quoted) = linked.or_else(|| answer.header("etag")) else {
        return Err(Fault::odd(&answer.address, "an ETag", "none"));
    };
    let Some(etag) = plain_etag(quoted) else { return odd("an ETag of letters and digits", quoted) };
    let number = |name: &str| answer.header(name).and_then(|text| text.trim().parse::<u64>().ok());
    let size = match number("x-linked-size") {
        Some(size) => Some(size),
        // The length of a compressed answer says nothing, and a redirect's own length is that of its text.
        None if answer.is_redirect() || !answer.is_plain() => None,
        None => match (answer.status(), answer.range()) {
            (206, range) => range.and_then(|(_, total)| total),
            _ => number("content-length"),
        },
    };
    Ok(FileInfo { etag, size, address: asked.to_owned() })
}

/// Returns an ETag without its quotes and the `W/` of a weak one; `None` if it can't be the name of a file.
fn plain_etag(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_+=".contains(&b);
    let plain = !text.is_empty() && text.len() <= MAX_ETAG && !text.starts_with('-') && text.bytes().all(fits);
    plain.then(|| text.to_owned())
}

/// Checks that an answer with content is about the same file as the earlier answer with its facts.
pub(super) fn agrees(answer: &Answer, known: &FileInfo, commit: &str) -> Result<(), Fault> {
    let Some(other) = answer.header("x-repo-commit") else {
        // This isn't the hub itself, but a server that only stores contents, and gives them its own ETags.
        return match answer.is_page() {
            true => Err(Fault::page(&answer.address)),
            false => Ok(()),
        };
    };
    if other != commit {
        return Err(Fault::odd(
            &answer.address,
            format_args!("the file of commit {commit}"),
            format_args!("{other:?}"),
        ));
    }
    let quoted = answer.header("x-linked-etag").or_else(|| answer.header("etag"));
    match quoted.map(plain_etag) {
        Some(etag) if etag.as_deref() != Some(&known.etag) => {
            let found = format!("{:?}", quoted.unwrap_or_default());
            Err(Fault::odd(&answer.address, format_args!("the ETag {:?} that it gave before", known.etag), found))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::plain_etag;

    #[test]
    fn etags_are_plain_words_or_nothing() {
        for (text, expected) in [
            ("\"abc\"", Some("abc")),
            ("W/\"abc\"", Some("abc")),
            ("abc-12", Some("abc-12")),
            ("\"../../evil\"", None),
            ("\"/etc/passwd\"", None),
            ("\"a.lock\"", None),
            ("\"\"", None),
            ("W/", None),
            ("\"a\\b\"", None),
        ] {
            assert_eq!(plain_etag(text).as_deref(), expected, "{text}");
        }
        assert_eq!(plain_etag(&"a".repeat(201)), None);
    }
}
