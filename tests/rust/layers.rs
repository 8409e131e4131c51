//! Lower layers never import higher ones, and a few things are used in one layer only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of `src/`, lowest layer first, as `docs/architecture.md` draws them.
const LAYERS: &[&str] = &[
    "base", "settings", "wire", "core", "net", "ports", "link", "adapters", "node", "shard",
    "host", "py",
];

/// Folders whose files extend one type, and so name each other. Everywhere else a circle of imports is refused.
const ROOMS: &[&str] = &["shard"];

/// Names that only some files may use, given by the beginnings of their paths.
const RESERVED: &[(&str, &[&str])] = &[
    ("pyo3", &["py/"]),
    ("tokio::net", &["shard/"]),
    ("tokio::", &["shard/", "host/", "py/"]),
    (
        "std::net",
        &[
            "base/fork.rs",
            "settings/hosts.rs",
            "net/",
            "link/",
            "node/",
            "shard/",
            "host/",
        ],
    ),
    ("adapters::", &["adapters/", "host/", "py/mod.rs"]),
    ("rusqlite", &["adapters/sqlite/"]),
    (
        "Instant",
        &[
            "base/clock.rs",
            "base/sync.rs",
            "core/inbox.rs",
            "adapters/",
            "shard/",
            "host/",
            "py/",
        ],
    ),
    ("std::sync::Mutex", &["base/sync.rs"]),
    ("parking_lot", &[]),
    ("SystemTime", &["base/clock.rs"]),
];

/// Adds the files below a folder whose names have one of these extensions; not those of installed packages.
fn files_below(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("node_modules") {
                files_below(&path, extensions, found);
            }
        } else if path
            .extension()
            .is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted))
        {
            found.push(path);
        }
    }
}

/// Path below `src/`, and text, of every source file.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files_below(&root, &["rs"], &mut paths);
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            let text = fs::read_to_string(&path).unwrap();
            (name.replace('\\', "/"), text)
        })
        .filter(|(name, _)| name != "lib.rs")
        .collect()
}

/// The code of a file without its tests and comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end]
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

fn layer(path: &str) -> usize {
    let folder = path.split('/').next().unwrap();
    LAYERS
        .iter()
        .position(|name| *name == folder)
        .unwrap_or_else(|| {
            panic!("{path} is in no layer: add its folder to the table here and in docs/architecture.md")
        })
}

/// The files that a file imports: by `crate::` and `super::` paths, and by the names of its own modules.
fn imports(path: &str, text: &str, files: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut own: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
    if own.last() == Some(&"mod") {
        own.pop();
    }
    let parent = own[..own.len() - 1].join("/");
    let own = own.join("/");
    let joined = code(text).collect::<Vec<_>>().join(" ");
    let mut found = BTreeSet::new();
    for (marker, base) in [("crate::", ""), ("super::", parent.as_str())] {
        for rest in joined.split(marker).skip(1) {
            for name in names(rest) {
                found.extend(file_of(&format!("{base}/{name}"), files));
            }
        }
    }
    for rest in joined.split("use ").skip(1) {
        found.extend(names(rest).iter().filter_map(|name| {
            let child = name.split('/').next()?;
            let file = format!("{own}/{child}.rs");
            files.contains_key(&file).then_some(file)
        }));
    }
    found.remove(path);
    found
}

/// The paths at the beginning of a text, with `/` for `::`: one, or those of a group in braces.
fn names(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let head: String = text.chars().take_while(|c| is_part(*c)).collect();
    let Some(group) = text[head.len()..].strip_prefix('{') else {
        return vec![head.replace("::", "/")];
    };
    let end = group.find('}').unwrap_or(group.len());
    group[..end]
        .split(',')
        .map(|name| format!("{head}{}", name.trim()).replace("::", "/"))
        .collect()
}

/// The file that defines a path: the longest beginning of the path that is a module.
fn file_of(path: &str, files: &BTreeMap<String, String>) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    while !parts.is_empty() {
        let module = parts.join("/");
        for file in [format!("{module}.rs"), format!("{module}/mod.rs")] {
            if files.contains_key(&file) {
                return Some(file);
            }
        }
        parts.pop();
    }
    None
}

#[test]
fn lower_layers_never_import_higher_ones() {
    let files = sources();
    for (path, text) in &files {
        for imported in imports(path, text, &files) {
            assert!(
                layer(&imported) <= layer(path),
                "{path} imports {imported}, which is of a higher layer"
            );
        }
    }
}

#[test]
fn no_two_files_import_each_other_round_a_circle() {
    let files = sources();
    let room = |path: &str| {
        let folder = path.split('/').next().unwrap_or_default();
        if ROOMS.contains(&folder) {
            folder.to_owned()
        } else {
            path.to_owned()
        }
    };
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in &files {
        let targets = imports(path, text, &files);
        arrows
            .entry(room(path))
            .or_default()
            .extend(targets.iter().map(|target| room(target)));
    }
    if let Some(circle) = circle_in(&arrows) {
        panic!("a circle of imports: {}", circle.join(" -> "));
    }
}

#[test]
fn a_circle_is_found() {
    let arrows = |pairs: &[(&str, &str)]| {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in pairs {
            all.entry((*from).to_owned())
                .or_default()
                .insert((*to).to_owned());
        }
        all
    };
    assert_eq!(
        circle_in(&arrows(&[("a", "b"), ("b", "c"), ("a", "c")])),
        None
    );
    let circle = circle_in(&arrows(&[("a", "b"), ("b", "c"), ("c", "b")])).unwrap();
    assert_eq!(circle, ["b", "c", "b"]);
}

/// A way from a room back to itself.
fn circle_in(arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit(
        room: &str,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
        arrows: &BTreeMap<String, BTreeSet<String>>,
    ) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|earlier| earlier == room) {
            let mut circle = way[start..].to_vec();
            circle.push(room.to_owned());
            return Some(circle);
        }
        if !done.insert(room.to_owned()) {
            return None;
        }
        way.push(room.to_owned());
        for target in arrows.get(room).into_iter().flatten() {
            if target != room
                && let Some(circle) = visit(target, way, done, arrows)
            {
                return Some(circle);
            }
        }
        way.pop();
        None
    }
    let mut done = BTreeSet::new();
    arrows
        .keys()
        .find_map(|room| visit(room, &mut Vec::new(), &mut done, arrows))
}

#[test]
fn what_is_reserved_to_a_layer_stays_there() {
    for (path, text) in sources() {
        for (name, allowed) in RESERVED {
            let uses = code(&text)
                .any(|line| line.contains(name) && !line.contains("tokio_tungstenite::"));
            assert!(
                !uses || allowed.iter().any(|start| path.starts_with(start)),
                "{path}: {name} is for {allowed:?} only"
            );
        }
    }
}

#[test]
fn shards_share_nothing_by_lock() {
    const OWNED: &[&str] = &[
        "core/hub.rs",
        "wire/frame_reader.rs",
        "core/outbound.rs",
        "core/wheel.rs",
        "shard/socket.rs",
    ];
    let files = sources();
    for path in OWNED {
        let locks =
            code(&files[*path]).any(|line| line.contains("Mutex") || line.contains("RwLock"));
        assert!(!locks, "{path}: a shard owns its connections outright");
    }
}

#[test]
fn files_are_on_the_map() {
    let map =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md"))
            .unwrap();
    for path in sources().keys() {
        assert!(
            map.contains(&format!("`{path}`")),
            "docs/architecture.md does not say what `{path}` is for"
        );
    }
}

/// The most lines of a file.
const MOST_LINES: usize = 500;

#[test]
fn files_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for folder in ["benches", "examples", "python", "scripts", "src", "tests"] {
        files_below(&root.join(folder), &["rs", "py"], &mut paths);
    }
    let mut too_long = Vec::new();
    for path in paths {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        let name = name.replace('\\', "/");
        if lines > MOST_LINES {
            too_long.push(format!(
                "{name} has {lines} lines, and may have {MOST_LINES}"
            ));
        }
    }
    assert!(too_long.is_empty(), "{too_long:#?}");
}
