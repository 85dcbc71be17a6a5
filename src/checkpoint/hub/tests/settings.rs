//! Variables, as Python's huggingface_hub reads them.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::checkpoint::hub::HubSettings;
use crate::error::Result;

fn of(variables: &[(&str, &str)]) -> Result<HubSettings> {
    let variables: HashMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    HubSettings::from_variables(|name| variables.get(name).cloned())
}

#[test]
fn settings_come_from_the_variables_of_huggingface_hub() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "hf_kept\n").unwrap();
    let home_text = home.path().to_string_lossy().into_owned();
    let settings = of(&[("HF_HOME", &home_text), ("HOME", "/home/me")]).unwrap();
    assert_eq!(settings.cache, home.path().join("hub"));
    assert_eq!(settings.token.as_deref(), Some("hf_kept"));
    assert_eq!(settings.endpoint, "https://huggingface.co");
    assert_eq!(settings.offline, None);
    assert_eq!([settings.etag_timeout, settings.download_timeout], [Duration::from_secs(10); 2]);

    let more = [
        ("HF_HOME", home_text.as_str()),
        ("HF_HUB_CACHE", "/c"),
        ("HF_TOKEN", "hf_mine"),
        ("HF_HUB_OFFLINE", "True"),
        ("HF_ENDPOINT", "http://e/"),
        ("HF_HUB_ETAG_TIMEOUT", "3"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "60"),
    ];
    let settings = of(&more).unwrap();
    assert_eq!(settings.cache, PathBuf::from("/c"));
    assert_eq!(settings.token.as_deref(), Some("hf_mine"));
    assert_eq!(settings.endpoint, "http://e");
    assert_eq!(settings.offline, Some("HF_HUB_OFFLINE"));
    assert_eq!(settings.etag_timeout, Duration::from_secs(3));
    assert_eq!(settings.download_timeout, Duration::from_secs(60));

    let none = of(&[("HF_HOME", &home_text), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_TOKEN", "x")]).unwrap();
    assert_eq!(none.token, None);
    assert_eq!(of(&[("HOME", "/home/me")]).unwrap().cache, PathBuf::from("/home/me/.cache/huggingface/hub"));
    assert_eq!(of(&[("XDG_CACHE_HOME", "/x")]).unwrap().cache, PathBuf::from("/x/huggingface/hub"));
    assert!(of(&[]).unwrap_err().to_string().contains("expected a folder for the cache of models"));
}

#[test]
fn folders_are_expanded() {
    for (text, expected) in [
        ("~/models", "/home/me/models"),
        ("~", "/home/me"),
        ("~other/x", "~other/x"),
        ("$SCRATCH/hub", "/scratch/hub"),
        ("${SCRATCH}2/$NOT_SET", "/scratch2/$NOT_SET"),
        ("/a$", "/a$"),
        ("/a/${SCRATCH", "/a/${SCRATCH"),
    ] {
        let settings = of(&[("HOME", "/home/me"), ("SCRATCH", "/scratch"), ("HF_HUB_CACHE", text)]).unwrap();
        assert_eq!(settings.cache, PathBuf::from(expected), "{text}");
    }
    assert_eq!(of(&[("HOME", "/me"), ("HF_HOME", "~/hf")]).unwrap().cache, PathBuf::from("/me/hf/hub"));
}

#[test]
fn line_breaks_are_no_part_of_a_token_and_other_odd_characters_are_refused_unshown() {
    let token = |text| of(&[("HOME", "/home/me"), ("HF_TOKEN", text)]).map(|settings| settings.token);
    for text in ["hf_mine\n", " hf_mine\r\n", "hf_\nmine"] {
        assert_eq!(token(text).unwrap().as_deref(), Some("hf_mine"), "{text:?}");
    }
    assert_eq!(token("\n").unwrap(), None);
    let message = token("hf_schl\u{fc}ssel").unwrap_err().to_string();
    assert_eq!(
        message,
        "the environment: HF_TOKEN: expected a token of letters, digits and marks, found other characters in it"
    );
}

#[test]
fn variables_that_cannot_be_right_are_named() {
    for (name, text, expected) in [
        ("HF_ENDPOINT", "huggingface.co", "found \"huggingface.co\"; https://huggingface.co?"),
        ("HF_ENDPOINT", "ftp://x", "expected an address like https://huggingface.co"),
        ("HF_ENDPOINT", "https://", "expected an address like https://huggingface.co"),
        ("HF_ENDPOINT", "https://x y", "expected an address like https://huggingface.co"),
        ("HF_HUB_ETAG_TIMEOUT", "soon", "expected a whole number of seconds, found \"soon\""),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "-1", "expected a whole number of seconds"),
    ] {
        let message = of(&[("HOME", "/home/me"), (name, text)]).unwrap_err().to_string();
        assert!(message.contains(&format!("{name}: ")) && message.contains(expected), "{message}");
    }
}

#[test]
fn what_switches_offline_on_is_what_switches_it_on_there() {
    for (text, on) in
        [("1", true), ("on", true), ("YES", true), ("true", true), ("0", false), ("", false), ("no", false)]
    {
        let settings = of(&[("HOME", "/home/me"), ("HF_HUB_OFFLINE", text)]).unwrap();
        assert_eq!(settings.offline.is_some(), on, "{text}");
        assert_eq!(settings.notes, [""; 0]);
    }
    let settings = of(&[("HOME", "/home/me"), ("HF_HUB_OFFLINE", "y")]).unwrap();
    assert_eq!(settings.offline, None);
    assert!(settings.notes[0].starts_with("HF_HUB_OFFLINE is \"y\", which huggingface_hub takes as off"));
    let settings = of(&[("HOME", "/home/me"), ("TRANSFORMERS_OFFLINE", "1")]).unwrap();
    assert_eq!(settings.offline, Some("TRANSFORMERS_OFFLINE"));
}
