//! Names of the hub against caches on the disk and a hub on this machine.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that serves one commit of `org/model`, and remembers what it was asked.
struct Server {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

/// What a server says of itself.
#[derive(Clone)]
struct Behaviour {
    files: HashMap<&'static str, Vec<u8>>,
    /// The token it wants.
    token: Option<&'static str>,
    /// What it says the commit is: of the model, and of every file.
    commits: [&'static str; 2],
    /// What it says the marks of files begin with.
    mark: &'static str,
    /// Bytes that it says a file has more than it has.
    missing: usize,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { files: HashMap::new(), token: None, commits: [COMMIT; 2], mark: "etag", missing: 0 }
    }
}

fn serving(files: &[(&'static str, &str)]) -> Behaviour {
    let files = files.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect();
    Behaviour { files, ..Behaviour::default() }
}

impl Server {
    fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        // Ends with the process: it holds nothing but its socket.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &behaviour, &log);
            }
        });
        Self { endpoint, asked }
    }

    fn settings(&self, cache: &tempfile::TempDir) -> HubSettings {
        let home = cache.path().to_string_lossy().into_owned();
        let variables = HashMap::from([("HF_HOME", home), ("HF_ENDPOINT", format!("{}/", self.endpoint))]);
        HubSettings::from_variables(|name| variables.get(name).cloned()).unwrap()
    }

    /// The paths that were asked for since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn answer(stream: TcpStream, behaviour: &Behaviour, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(&stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(n) if n > 0 && !line.trim().is_empty() => lines.push(line.trim().to_owned()),
            _ => break,
        }
    }
    let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)).map(str::to_owned) else { return };
    let header = |name: &str| {
        lines
            .iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|h| h.1)
    };
    log.lock().unwrap().push(path.clone());
    let wanted = behaviour.token.map(|token| format!("Bearer {token}"));
    let mut out = &stream;
    let mut reply = |status: &str, headers: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(body));
    };
    if wanted.is_some() && header("authorization") != wanted.as_deref() {
        return reply("401 Unauthorized", "", b"");
    }
    if ["main", COMMIT].iter().any(|revision| path == format!("/api/models/org/model/revision/{revision}")) {
        let siblings: Vec<_> = behaviour.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let info = serde_json::json!({"sha": behaviour.commits[0], "siblings": siblings});
        return reply("200 OK", "Content-Type: application/json\r\n", info.to_string().as_bytes());
    }
    let name = path.strip_prefix(&format!("/org/model/resolve/{COMMIT}/"));
    let Some((name, bytes)) = name.and_then(|name| behaviour.files.get_key_value(name)) else {
        return reply("404 Not Found", "", b"");
    };
    let range = header("range").and_then(|range| range.strip_prefix("bytes=")).unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
    let mark = format!("{}{}", behaviour.mark, name.replace(['/', '.'], "_"));
    let headers = format!(
        "ETag: \"{mark}\"\r\nX-Repo-Commit: {}\r\nContent-Range: bytes {start}-{}/{}\r\n",
        behaviour.commits[1],
        end - 1,
        bytes.len() + behaviour.missing
    );
    reply("206 Partial Content", &headers, &bytes[start..end]);
}

fn quiet(_: Download<'_>) {}

const MODEL: &[(&str, &str)] = &[
    (".gitattributes", "x"),
    ("README.md", "# A model"),
    ("config.json", "{}"),
    ("tokenizer.json", "{}"),
    ("1_Pooling/config.json", "{}"),
    ("model.safetensors.index.json", r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#),
    ("model-1.safetensors", "first"),
    ("model-2.safetensors", "second"),
    ("pytorch_model.bin", "the same again"),
    ("onnx/model.onnx", "and again"),
];

#[test]
fn a_model_is_fetched_once_and_then_read_from_the_cache() {
    let server = Server::start(serving(MODEL));
    let cache = tempfile::tempdir().unwrap();
    let settings = server.settings(&cache);
    let seen = Mutex::new(Vec::new());
    let note = |d: Download<'_>| {
        if d.done == d.total {
            seen.lock().unwrap().push((d.file.to_owned(), d.total));
        }
    };
    let model = resolve("hf:org/model", &settings, &note).unwrap();
    assert_eq!(model.id, "org/model");
    assert_eq!(model.path, cache.path().join("hub/models--org--model/snapshots").join(COMMIT));
    for (name, text) in MODEL {
        let wanted = ![".gitattributes", "pytorch_model.bin", "onnx/model.onnx"].contains(name);
        let found = fs::read_to_string(model.path.join(name)).ok();
        assert_eq!(found.as_deref(), wanted.then_some(*text), "{name}");
    }
    let refs = cache.path().join("hub/models--org--model/refs");
    assert_eq!(fs::read_to_string(refs.join("main")).unwrap(), COMMIT);
    assert_eq!(fs::read_dir(refs).unwrap().count(), 1);
    let seen = seen.into_inner().unwrap();
    assert!(seen.contains(&("model-2.safetensors".to_owned(), 6)), "{seen:?}");

    assert!(!server.asked().is_empty());
    for name in ["hf:org/model", &format!("hf:org/model@{COMMIT}")] {
        assert_eq!(resolve(name, &settings, &quiet).unwrap(), model);
    }
    assert_eq!(server.asked(), [""; 0], "what is there is not asked for");
}

#[test]
fn what_a_broken_off_download_left_out_is_fetched_later() {
    let server = Server::start(serving(MODEL));
    let cache = tempfile::tempdir().unwrap();
    let settings = server.settings(&cache);
    let path = resolve("hf:org/model", &settings, &quiet).unwrap().path;
    fs::remove_file(path.join("model-2.safetensors")).unwrap();
    server.asked();
    let offline = HubSettings { offline: true, ..settings.clone() };
    let message = resolve("hf:org/model", &offline, &quiet).unwrap_err().to_string();
    assert!(message.contains("found nothing, or a part; HF_HUB_OFFLINE is set"), "{message}");
    assert_eq!(server.asked(), [""; 0]);
    resolve("hf:org/model", &settings, &quiet).unwrap();
    assert_eq!(fs::read_to_string(path.join("model-2.safetensors")).unwrap(), "second");
    assert!(server.asked().iter().all(|asked| !asked.contains("model-1.safetensors")));
}

/// A cache as Python's huggingface_hub leaves it, with real files for links.
fn python_cache(files: &[&str]) -> (tempfile::TempDir, HubSettings) {
    let cache = tempfile::tempdir().unwrap();
    let model = cache.path().join("models--org--model");
    let snapshot = model.join("snapshots").join(COMMIT);
    fs::create_dir_all(model.join("refs/pr")).unwrap();
    for name in ["main", "pr/1"] {
        fs::write(model.join("refs").join(name), COMMIT).unwrap();
    }
    for name in files {
        let path = snapshot.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let settings = HubSettings {
        cache: cache.path().to_owned(),
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        offline: true,
    };
    (cache, settings)
}

#[test]
fn a_cache_of_another_program_is_read_without_the_hub() {
    let (cache, settings) = python_cache(&["config.json", "pytorch_model.bin"]);
    let snapshot = cache.path().join("models--org--model/snapshots").join(COMMIT);
    for name in ["hf:org/model", "hf:org/model@pr/1", &format!("hf:org/model@{COMMIT}")] {
        assert_eq!(resolve(name, &settings, &quiet).unwrap().path, snapshot, "{name}");
    }
    let (cache, settings) = python_cache(&["adapter_config.json", "adapter_model.safetensors"]);
    assert!(resolve("hf:org/model", &settings, &quiet).unwrap().path.starts_with(cache.path()));
    let (cache, settings) = python_cache(&["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf", "one.gguf"]);
    let snapshot = cache.path().join("models--org--model/snapshots").join(COMMIT);
    for file in ["q/m-00001-of-00002.gguf", "one.gguf"] {
        assert_eq!(resolve(&format!("hf:org/model/{file}"), &settings, &quiet).unwrap().path, snapshot.join(file));
    }
}

#[test]
fn what_is_not_in_the_cache_is_said_in_one_line_when_offline() {
    let incomplete: [&[&str]; 4] =
        [&[], &["config.json"], &["model.safetensors"], &["config.json", "model.safetensors.index.json"]];
    for files in incomplete {
        let (cache, settings) = python_cache(files);
        let message = resolve("hf:org/model", &settings, &quiet).unwrap_err().to_string();
        let expected = format!(
            "hf:org/model: expected all of it in the cache {}, found nothing, or a part; HF_HUB_OFFLINE is set: fetch \
             it without that first",
            cache.path().display()
        );
        assert_eq!(message, expected, "{files:?}");
    }
    let (_cache, settings) = python_cache(&["config.json", "model.safetensors", "m-00001-of-00002.gguf"]);
    for name in ["hf:org/model@other", "hf:org/other", "hf:org/model/x.gguf", "hf:org/model/m-00001-of-00002.gguf"] {
        assert!(resolve(name, &settings, &quiet).unwrap_err().to_string().contains("HF_HUB_OFFLINE"), "{name}");
    }
}

#[test]
fn a_reference_to_another_folder_is_not_followed() {
    let (cache, settings) = python_cache(&["config.json", "model.safetensors"]);
    fs::write(cache.path().join("models--org--model/refs/main"), "../../../etc").unwrap();
    assert!(resolve("hf:org/model", &settings, &quiet).is_err());
}

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    let private = Behaviour { token: Some("hf_secret"), ..serving(MODEL) };
    let server = Server::start(private);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = server.settings(&cache);
    let message = resolve("hf:org/model", &settings, &quiet).unwrap_err().to_string();
    let expected = "hf:org/model: expected access to it, found status 401; it is private, or to be asked for on its \
                    page, or not there: set HF_TOKEN";
    assert_eq!(message, expected);
    settings.token = Some("hf_other".to_owned());
    let message = resolve("hf:org/model", &settings, &quiet).unwrap_err().to_string();
    assert!(message.contains("found status 401; the token in use has no access"), "{message}");
    assert!(!message.contains("hf_other"), "{message}");
    settings.token = Some("hf_secret".to_owned());
    assert!(resolve("hf:org/model", &settings, &quiet).is_ok());

    for (name, expected) in [
        ("hf:org/gone", "hf:org/gone: expected a model at http://127.0.0.1"),
        ("hf:org/model@gone", "with revision \"gone\", found status 404; is the name right?"),
    ] {
        let message = resolve(name, &settings, &quiet).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    settings.endpoint = "http://127.0.0.1:9".to_owned();
    let error = resolve("hf:org/model@other", &settings, &quiet).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(error.to_string().starts_with("hf:org/model@other: cannot download: "), "{error}");
}

#[test]
fn a_hub_that_names_other_places_is_refused_before_anything_is_written() {
    let cases = [
        (
            serving(&[("config.json", "{}"), ("../x", "y")]),
            "expected names of files that stay in their folder, found \"../x\"",
        ),
        (serving(&[("/etc/x.json", "y")]), "found \"/etc/x.json\""),
        (
            Behaviour { commits: ["../..", COMMIT], ..serving(MODEL) },
            "expected a commit of 40 hexadecimal digits, found \"../..\"",
        ),
        (Behaviour { commits: [COMMIT, "../.."], ..serving(MODEL) }, "expected the file of commit 0123456789"),
        (Behaviour { mark: "../../", ..serving(MODEL) }, "expected a mark of letters and digits, found \"../../"),
        (
            serving(&[
                ("config.json", "{}"),
                ("model.safetensors.index.json", r#"{"weight_map": {"a": "../../x.safetensors"}}"#),
            ]),
            "expected names of files in this folder, found \"../../x.safetensors\"",
        ),
    ];
    for (behaviour, expected) in cases {
        let server = Server::start(behaviour);
        let cache = tempfile::tempdir().unwrap();
        let error = resolve("hf:org/model", &server.settings(&cache), &quiet).unwrap_err();
        assert!(matches!(error, Error::Format(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        let outside = fs::read_dir(cache.path()).unwrap().flatten().any(|entry| entry.file_name() != "hub");
        assert!(!outside);
    }
}

#[test]
fn a_file_that_comes_short_is_not_kept() {
    let server =
        Server::start(Behaviour { missing: 3, ..serving(&[("config.json", "{}"), ("model.safetensors", "abc")]) });
    let cache = tempfile::tempdir().unwrap();
    let message = resolve("hf:org/model", &server.settings(&cache), &quiet).unwrap_err().to_string();
    assert!(message.contains("config.json: expected 5 bytes, found 2; try again"), "{message}");
    let snapshot = cache.path().join("hub/models--org--model/snapshots").join(COMMIT);
    assert_eq!(fs::read_dir(snapshot).unwrap().count(), 0);
}

#[test]
fn of_several_gguf_files_one_is_chosen() {
    let files = [("README.md", "x"), ("m-q4.gguf", "four"), ("m-q8.gguf", "eight")];
    let server = Server::start(serving(&files));
    let cache = tempfile::tempdir().unwrap();
    let settings = server.settings(&cache);
    let message = resolve("hf:org/model", &settings, &quiet).unwrap_err().to_string();
    assert!(message.contains("found 2 GGUF files: "), "{message}");
    assert!(message.contains("choose one: hf:org/model/m-q"), "{message}");
    let model = resolve("hf:org/model/m-q8.gguf", &settings, &quiet).unwrap();
    assert_eq!(fs::read_to_string(&model.path).unwrap(), "eight");
    server.asked();
    assert_eq!(resolve("hf:org/model/m-q8.gguf", &settings, &quiet).unwrap(), model);
    assert_eq!(server.asked(), [""; 0]);
    let message = resolve("hf:org/model/m-q5.gguf", &settings, &quiet).unwrap_err().to_string();
    assert!(message.contains("m-q5.gguf: expected"), "{message}");

    let server = Server::start(serving(&[("only.gguf", "one")]));
    let cache = tempfile::tempdir().unwrap();
    let path = resolve("hf:org/model", &server.settings(&cache), &quiet).unwrap().path;
    assert!(path.ends_with("only.gguf"));
}

#[test]
fn names_of_another_form_are_refused() {
    let (_cache, settings) = python_cache(&[]);
    for (name, expected) in [
        ("org/model", "found another beginning"),
        ("hf:", "found a name that the hub doesn't allow"),
        ("hf:org/", "found a name that the hub doesn't allow"),
        ("hf:../model", "found a name that the hub doesn't allow"),
        ("hf:org--x/model", "found a name that the hub doesn't allow"),
        ("hf:org/mo del", "found a name that the hub doesn't allow"),
        ("hf:org/model@", "found a revision that is no branch, tag or commit"),
        ("hf:org/model@../x", "found a revision that is no branch, tag or commit"),
        ("hf:org/model/config.json", "found a file that is no GGUF"),
        ("hf:org/model/../x.gguf", "found a file that is no GGUF"),
    ] {
        let message = resolve(name, &settings, &quiet).unwrap_err().to_string();
        assert!(message.starts_with(name) && message.contains(expected), "{message}");
    }
    assert_eq!(Name::parse("hf:gpt2@v1").unwrap().id, "gpt2");
    assert!(is_hub_name("hf:org/model") && !is_hub_name("./hf:org/model"));
}

#[test]
fn settings_come_from_the_variables_of_huggingface_hub() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "hf_kept\n").unwrap();
    let home_text = home.path().to_string_lossy().into_owned();
    let of = |variables: &[(&str, &str)]| {
        let variables: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        HubSettings::from_variables(|name| variables.get(name).cloned())
    };
    let settings = of(&[("HF_HOME", &home_text), ("HOME", "/home/me")]).unwrap();
    assert_eq!(settings.cache, home.path().join("hub"));
    assert_eq!(settings.token.as_deref(), Some("hf_kept"));
    assert_eq!(settings.endpoint, "https://huggingface.co");
    assert!(!settings.offline);

    let more =
        [("HF_HUB_CACHE", "/c"), ("HF_TOKEN", "hf_mine"), ("HF_HUB_OFFLINE", "True"), ("HF_ENDPOINT", "http://e/")];
    let settings = of(&[&more[..], &[("HF_HOME", home_text.as_str())]].concat()).unwrap();
    assert_eq!(settings.cache, PathBuf::from("/c"));
    assert_eq!(settings.token.as_deref(), Some("hf_mine"));
    assert_eq!(settings.endpoint, "http://e");
    assert!(settings.offline);

    assert_eq!(of(&[("HOME", "/home/me")]).unwrap().cache, PathBuf::from("/home/me/.cache/huggingface/hub"));
    assert_eq!(of(&[("XDG_CACHE_HOME", "/x")]).unwrap().cache, PathBuf::from("/x/huggingface/hub"));
    assert!(of(&[]).unwrap_err().to_string().contains("expected a folder for the cache of models"));
}

#[test]
fn names_in_settings_have_no_revision_and_no_file() {
    for (text, expected) in [
        ("hf:org/name", "org/name"),
        ("hf:org/name@main", "org/name"),
        ("hf:org/name/model-Q4_K_M.gguf", "org/name"),
        ("../base", "../base"),
        ("org/name", "org/name"),
    ] {
        assert_eq!(plain_name(text), expected);
    }
}
