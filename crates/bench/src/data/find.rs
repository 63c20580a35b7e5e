//! Data sets by short names: where the files of the field lie, under the names that they have.

use std::path::{Path, PathBuf};

use mutandis_edit::fact::nearest;
use mutandis_edit::{Error, Result};

/// Where data sets are looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// A folder of the user's: files lie in it, or in folders as they are published.
    pub folder: Option<PathBuf>,
    /// The hub's cache, which holds `datasets--ORG--NAME`.
    pub hub_cache: Option<PathBuf>,
}

impl Places {
    /// Checks that the user's folder is there, so that what is not found in it is not sought in vain.
    ///
    /// # Errors
    /// Where it is none.
    pub fn check(&self) -> Result<()> {
        let Some(folder) = self.folder.as_deref().filter(|folder| !folder.is_dir()) else { return Ok(()) };
        let what = if folder.exists() { "is a file, and a folder is wanted" } else { "does not exist" };
        Err(Error::input_hint(
            format!("the folder `{}` {what}", folder.display()),
            "give the folder that data sets lie in, from where you are, or leave out `--folder` (in a plan \
             `folder`): short names are looked for in the hub's cache too",
        ))
    }
}

/// A data set that has a short name.
struct Known {
    name: &'static str,
    /// Its files, the best first: tests before training, official names before copies'.
    files: &'static [&'static str],
    /// Whether it is part of [`HUB`].
    on_hub: bool,
}

/// The hub's data set that holds KnowEdit.
const HUB: &str = "zjunlp/KnowEdit";

/// Folders within the user's that may hold the files.
const FOLDERS: [&str; 7] =
    ["", "benchmark", "KnowEdit/benchmark", "knowedit", "counterfact", "zsre", "mquake"];

static KNOWN: [Known; 10] = [
    Known {
        name: "wiki_recent",
        files: &[
            "wiki_recent/recent_test.json",
            "wiki_recent_test.json",
            "recent_test.json",
            "wiki_recent/recent_train.json",
            "wiki_recent_train.json",
            "recent_train.json",
        ],
        on_hub: true,
    },
    Known { name: "zsre", files: &["ZsRE/ZsRE-test-all.json", "ZsRE-test-all.json"], on_hub: true },
    Known {
        name: "wikibio",
        files: &[
            "WikiBio/wikibio-test-all.json",
            "wikibio-test-all.json",
            "WikiBio/wikibio-train-all.json",
            "wikibio-train-all.json",
        ],
        on_hub: true,
    },
    Known {
        name: "wiki_counterfact",
        files: &[
            "wiki_counterfact/test_cf.json",
            "wiki_counterfact_test_cf.json",
            "wiki_counterfact_test_cf_885.json",
            "test_cf.json",
            "wiki_counterfact/train_cf.json",
            "wiki_counterfact_train_cf.json",
            "train_cf.json",
        ],
        on_hub: true,
    },
    Known {
        name: "convsent",
        files: &[
            "Convsent/blender_test.json",
            "convsent/blender_test.json",
            "convsent_blender_test.json",
            "blender_test.json",
            "Convsent/blender_val.json",
            "convsent/blender_val.json",
            "convsent_blender_val.json",
            "blender_val.json",
            "Convsent/blender_train.json",
            "convsent/blender_train.json",
            "convsent_blender_train.json",
            "blender_train.json",
        ],
        on_hub: true,
    },
    Known {
        name: "sanitation",
        // Training first: it is what is edited, and it alone names subjects. The test file asks
        // other questions with the same answers.
        files: &[
            "Sanitation/trivia_qa_train.json",
            "trivia/trivia_qa_train.json",
            "sanitation_trivia_qa_train.json",
            "trivia_qa_train.json",
            "Sanitation/trivia_qa_test.json",
            "trivia/trivia_qa_test.json",
            "sanitation_trivia_qa_test.json",
            "trivia_qa_test.json",
        ],
        on_hub: true,
    },
    Known {
        name: "counterfact",
        files: &[
            "counterfact.json",
            "multi_counterfact.json",
            "counterfact_fullfields_merged.json",
            "counterfact-val.json",
            "counterfact-edit.json",
            "counterfact-train.json",
        ],
        on_hub: false,
    },
    Known {
        name: "zsre-mend",
        files: &[
            "zsre_mend_eval.json",
            "zsre_mend_eval_portability_gpt4.json",
            "zsre_mend_edit.json",
            "zsre_mend_train.json",
            "zsre_mend_train_10000.json",
        ],
        on_hub: false,
    },
    Known {
        name: "mquake-cf",
        files: &["MQuAKE-CF-3k-v2.json", "MQuAKE-CF-3k.json", "MQuAKE-CF.json", "AKEW_MQuAKE-CF_354.json"],
        on_hub: false,
    },
    Known { name: "mquake-t", files: &["MQuAKE-T.json"], on_hub: false },
];

/// The file of a data set, given by path, by the name of a file in the user's folder, by short name, or
/// as `OWNER/NAME/FILE` of any data set in the hub's cache. A file that exists wins over a name, the
/// user's folder over the hub's cache, and a test file over one for training.
///
/// # Errors
/// Where there is none: with the names that there are, or where it was looked for and how it is got.
pub fn find(name: &str, places: &Places) -> Result<PathBuf> {
    let path = Path::new(name);
    // A pipe is read as a file is.
    if path.exists() && !path.is_dir() {
        return Ok(path.to_owned());
    }
    if let Err(error) = path.try_exists()
        && error.kind() == std::io::ErrorKind::PermissionDenied
    {
        return Err(Error::io("read", path)(error));
    }
    let own: Vec<PathBuf> =
        places.folder.iter().flat_map(|folder| FOLDERS.map(|inner| folder.join(inner))).collect();
    let Some(known) = known(name) else {
        // A plan may name a file of the folder, wherever that is on this machine.
        let file = own.iter().map(|root| root.join(name)).find(|file| file.is_file());
        let file = file.or_else(|| in_cache(name, places.hub_cache.as_deref()?));
        return file.ok_or_else(|| unknown(name));
    };
    let within = |roots: &[PathBuf]| {
        let mut files = known.files.iter().flat_map(|file| roots.iter().map(move |root| root.join(file)));
        files.find(|file| file.is_file())
    };
    let hub = known.on_hub(places);
    within(&own).or_else(|| within(hub.as_slice())).ok_or_else(|| absent(known, places))
}

/// What a data set is called wherever it lies: by its short name, or as its file is without folders
/// and ending. `path` is what [`find`] found for `data`.
pub fn name_of(data: &str, path: &Path) -> String {
    // A path that was found as it was given is a file of that name, whatever names there are.
    match known(data).filter(|_| path != Path::new(data)) {
        Some(known) => known.name.to_owned(),
        None => path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
    }
}

/// The data set of a short name, however it is written.
fn known(name: &str) -> Option<&'static Known> {
    let plain = |name: &str| name.to_lowercase().replace('-', "_");
    KNOWN.iter().find(|known| plain(known.name) == plain(name))
}

impl Known {
    /// Where the hub's cache holds its files.
    fn on_hub(&self, places: &Places) -> Option<PathBuf> {
        let cache = places.hub_cache.as_deref().filter(|_| self.on_hub)?;
        Some(snapshot(cache, HUB).join("benchmark"))
    }
}

/// A file of any data set that the hub's cache holds, named `OWNER/NAME/FILE`.
fn in_cache(name: &str, cache: &Path) -> Option<PathBuf> {
    let (owner, rest) = name.split_once('/')?;
    let (set, file) = rest.split_once('/')?;
    Some(snapshot(cache, &format!("{owner}/{set}")).join(file)).filter(|file| file.is_file())
}

/// Where the hub's cache holds a data set, in the revision that `refs/main` names.
fn snapshot(cache: &Path, set: &str) -> PathBuf {
    let set = cache.join(format!("datasets--{}", set.replace('/', "--")));
    let revision = std::fs::read_to_string(set.join("refs/main")).unwrap_or_else(|_| "main".to_owned());
    set.join("snapshots").join(revision.trim())
}

/// It is neither a file nor a name.
fn unknown(name: &str) -> Error {
    let names = KNOWN.each_ref().map(|known| known.name);
    let what = if Path::new(name).is_dir() { "is a folder, and a file is wanted" } else { "is not found" };
    let meant = nearest(name, names).map(|m| format!("did you mean `{m}`? ")).unwrap_or_default();
    Error::input_hint(
        format!("the data set `{name}` {what}"),
        format!(
            "{meant}give the path of a file, `OWNER/NAME/FILE` of a data set in the hub's cache, or one of `{}`",
            names.join("`, `")
        ),
    )
}

/// It has a name, and is nowhere.
fn absent(known: &Known, places: &Places) -> Error {
    let Known { name, files, on_hub } = known;
    let looked: Vec<String> = places
        .folder
        .clone()
        .into_iter()
        .chain(known.on_hub(places))
        .map(|folder| format!("`{}`", folder.display()))
        .collect();
    let looked = if looked.is_empty() { "no folder is given".to_owned() } else { looked.join(" and ") };
    let files = files.join("`, `");
    let get = if *on_hub {
        format!("get it with `hf download {HUB} --repo-type dataset`, or ")
    } else {
        String::new()
    };
    Error::input_hint(
        format!("the data set `{name}` is not found; looked in: {looked}"),
        format!("{get}give the path of its file, or a folder that has one of `{files}`"),
    )
}
