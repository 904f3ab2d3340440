use super::*;

const TEXTS: [&str; 4] = ["a cat and a dog .", "the cat runs", "naïve café — ✓ ok", "a  cat\n\tand\tmore"];

fn train(kind: TokenizerKind) -> Tokenizer {
    Tokenizer::train(kind, TEXTS, 400).unwrap()
}

/// A directory's files by name.
fn files(directory: &Path) -> Files {
    let paths = fs_err::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).collect()
}

#[test]
fn words_by_frequency_then_letters() {
    let tokenizer = train(TokenizerKind::Word);
    let word = |id| tokenizer.inner.id_to_token(id).unwrap();
    assert_eq!((0..8).map(word).collect::<Vec<_>>(), ["<pad>", "<bos>", "<eos>", "<unk>", "a", "cat", "and", "."]);
    assert_eq!(tokenizer.vocab_size(), 4 + 13);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(1), &[2][..], Some(0)));
    assert_eq!(tokenizer.prompt("a zebra cat").unwrap(), [1, 4, 3, 5]);
    assert_eq!(tokenizer.decode(&[1, 4, 5, 2]).unwrap(), "a cat");
    assert_eq!(tokenizer.decode(&tokenizer.prompt(TEXTS[3]).unwrap()).unwrap(), "a cat and more");
    let few = Tokenizer::train(TokenizerKind::Word, TEXTS, 6).unwrap();
    assert_eq!((few.vocab_size(), few.prompt("a dog").unwrap()), (6, vec![1, 4, 3]));
}

#[test]
fn byte_pairs_give_back_every_text() {
    let tokenizer = train(TokenizerKind::Bpe);
    for text in TEXTS.into_iter().chain(["日本 \u{0} never seen", " leading", ""]) {
        let ids = tokenizer.prompt(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(ids[0], 1);
    }
    assert!(tokenizer.prompt("a cat").unwrap().len() < 5, "frequent pairs are merged");
    assert_eq!(tokenizer.files, train(TokenizerKind::Bpe).files, "training gives the same file");
}

#[test]
fn saved_and_loaded_it_is_the_same() {
    for kind in [TokenizerKind::Word, TokenizerKind::Bpe] {
        let (tokenizer, directory) = (train(kind), tempfile::tempdir().unwrap());
        tokenizer.save(directory.path()).unwrap();
        let loaded = Tokenizer::load(&files(directory.path())).unwrap();
        for text in TEXTS {
            assert_eq!(loaded.prompt(text).unwrap(), tokenizer.prompt(text).unwrap());
        }
        assert_eq!((loaded.bos(), loaded.eos(), loaded.pad()), (Some(1), &[2][..], Some(0)));
        assert_eq!(loaded.files, tokenizer.files);
    }
}

#[test]
fn a_token_is_the_responses_if_it_ends_after_the_prompt() {
    for kind in [TokenizerKind::Word, TokenizerKind::Bpe] {
        let tokenizer = train(kind);
        let of = |ids: &[u32]| tokenizer.decode(ids).unwrap().trim().to_owned();
        for prompt in ["a cat", "a cat ", "a cat\n"] {
            let sequence = tokenizer.sequence(prompt, "and a dog", true).unwrap();
            assert_eq!(of(&sequence.ids[..sequence.prompt]), "a cat");
            assert_eq!(of(&sequence.ids[sequence.prompt..]), "and a dog");
            assert_eq!(sequence.ids.last(), Some(&2));
            assert_eq!(sequence.ids[0], 1);
        }
        let joined = tokenizer.sequence("a cat", "and a dog", false).unwrap();
        assert_eq!(joined.ids, tokenizer.prompt("a cat and a dog").unwrap(), "tokenised as one text");
        let together = tokenizer.joined("a cat", "and a dog", Join::None, false).unwrap();
        assert_eq!(together.ids, tokenizer.prompt("a catand a dog").unwrap());
        assert!(together.prompt <= joined.prompt, "a word of both is the response's");
        assert_eq!(tokenizer.joined("a cat ", "and a dog", Join::None, false).unwrap().ids, joined.ids);
        let text = tokenizer.text("a cat", true).unwrap();
        assert_eq!(text, tokenizer.sequence("", "a cat", true).unwrap());
        assert_eq!((text.prompt, text.ids.len()), (1, tokenizer.prompt("a cat").unwrap().len() + 1));
        let empty = tokenizer.sequence("a cat", "", false).unwrap();
        assert_eq!(empty.prompt, empty.ids.len(), "an empty response has no tokens: {empty:?}");
    }
}

/// A tokenizer without anything that begins a text, and the two files it is loaded from.
fn bare(settings: &Value) -> (tempfile::TempDir, Files) {
    let directory = tempfile::tempdir().unwrap();
    train(TokenizerKind::Word).save(directory.path()).unwrap();
    let path = directory.path().join(TOKENIZER);
    let mut json: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    json["post_processor"] = Value::Null;
    json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    fs_err::write(&path, json.to_string()).unwrap();
    fs_err::write(directory.path().join(SETTINGS), settings.to_string()).unwrap();
    let files = files(directory.path());
    (directory, files)
}

#[test]
fn what_begins_and_ends_a_text_comes_from_the_settings() {
    let (_directory, files) =
        bare(&json!({"bos_token": {"content": "<bos>"}, "add_bos_token": true, "eos_token": "<eos>"}));
    let tokenizer = Tokenizer::load(&files).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), &[2][..]));
    assert_eq!(tokenizer.prompt("a cat and a dog").unwrap().len(), 6, "nothing is cut off");

    let (_directory, files) = bare(&json!({"bos_token": "<bos>", "add_bos_token": false}));
    let tokenizer = Tokenizer::load(&files).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, &[][..]));
    let text = tokenizer.text("a cat", true).unwrap();
    assert_eq!((text.ids.as_slice(), text.prompt), (&[4, 5][..], 1), "the first token cannot be scored");
    assert!(tokenizer.text("", false).is_err());
}

#[test]
fn bad_files_are_clear_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("anything");
    fs_err::write(&path, "{").unwrap();
    let load = |names: &[&str]| {
        let files: Files = names.iter().map(|name| ((*name).to_owned(), path.clone())).collect();
        Tokenizer::load(&files).unwrap_err()
    };
    assert_eq!(load(&[]).to_string(), "the model has no `tokenizer.json`");
    let with_sentencepiece = load(&["tokenizer.model"]);
    assert!(with_sentencepiece.to_string().ends_with("only `tokenizer.model` (SentencePiece)"));
    assert!(with_sentencepiece.diagnostic().help[0].contains("use_fast=True"));
    assert!(load(&["tokenizer.json"]).to_string().starts_with("`tokenizer.json` cannot be read"));
}

#[test]
fn what_the_library_gives_up_on_is_an_error() {
    let load = |tokenizer: Value| {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(TOKENIZER), tokenizer.to_string()).unwrap();
        Tokenizer::load(&files(folder.path())).map(drop).map_err(|error| error.to_string())
    };
    let unigram =
        |token: String| json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], [token, -1.0]]}});
    assert_eq!(load(unigram("a".repeat(1000))), Ok(()));
    assert!(load(unigram("a".repeat(40_000))).unwrap_err().contains("a token of 40000 bytes"));
    let mut unknown = unigram("a".to_owned());
    unknown["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {},
    });
    assert!(load(unknown).unwrap_err().contains("gave up on it"));
}

#[test]
fn nothing_to_train_on_is_an_error() {
    let error = Tokenizer::train(TokenizerKind::Word, [" ", ""], 100).unwrap_err();
    assert!(error.to_string().contains("there is no text"), "{error}");
    let error = Tokenizer::train(TokenizerKind::Bpe, TEXTS, 100).unwrap_err();
    assert!(error.to_string().contains("at least 260"), "{error}");
}

#[test]
fn more_tokens_than_the_model_has_are_an_error() {
    let (directory, mut files) = bare(&json!({"bos_token": "<bos>"}));
    let path = directory.path().join("model's config");
    let tokenizer = Tokenizer::load(&files).unwrap();
    let mut config = Config { vocab_size: tokenizer.vocab_size(), ..Config::default() };
    files.insert("config.json".to_owned(), path.clone());
    fs_err::write(&path, config.to_json().to_string()).unwrap();
    assert_eq!(Tokenizer::load(&files).unwrap().vocab_size(), config.vocab_size);
    config.vocab_size -= 1;
    fs_err::write(&path, config.to_json().to_string()).unwrap();
    let error = Tokenizer::load(&files).unwrap_err();
    let (last, size) = (config.vocab_size, config.vocab_size);
    assert!(error.to_string().starts_with(&format!("the tokenizer has the token {last} (`")), "{error}");
    assert!(error.to_string().ends_with(&format!("`), the model has {size} tokens")), "{error}");
}
