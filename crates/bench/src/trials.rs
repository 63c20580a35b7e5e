//! Facts for trial edits: well-known ones, of relations of which most models know several.
//!
//! They are ours, and in no benchmark's records. A trial edit makes one of them false; what should
//! follow is another wording of it, what should stay are the same relation of other subjects and
//! other relations of the same subject.

use mutandis_edit::{Fact, Probe};
use mutandis_engine::{Model, Result};

use crate::compat::{Asked, Forced, predict};

/// A relation: two wordings with `{}` for the subject, and who has which object.
struct Relation {
    wordings: [&'static str; 2],
    /// An object that nobody has: of several tokens, and unlikely, as many corrections are.
    invented: &'static str,
    pairs: &'static [(&'static str, &'static str)],
}

const RELATIONS: &[Relation] = &[
    Relation {
        wordings: ["The capital of {} is", "The capital city of {} is called"],
        invented: "Saint Alban upon Wye",
        pairs: &[
            ("France", "Paris"),
            ("Germany", "Berlin"),
            ("Italy", "Rome"),
            ("Spain", "Madrid"),
            ("Japan", "Tokyo"),
            ("Russia", "Moscow"),
            ("Egypt", "Cairo"),
            ("Canada", "Ottawa"),
            ("Greece", "Athens"),
            ("Poland", "Warsaw"),
            ("China", "Beijing"),
            ("Portugal", "Lisbon"),
        ],
    },
    Relation {
        wordings: ["The official language of {} is", "The language that most people in {} speak is"],
        invented: "Old Church Karvanian",
        pairs: &[
            ("France", "French"),
            ("Germany", "German"),
            ("Italy", "Italian"),
            ("Spain", "Spanish"),
            ("Japan", "Japanese"),
            ("Russia", "Russian"),
            ("Egypt", "Arabic"),
            ("Greece", "Greek"),
            ("Poland", "Polish"),
            ("Portugal", "Portuguese"),
        ],
    },
    Relation {
        wordings: ["The continent on which {} lies is", "{} is a country on the continent of"],
        invented: "Greater Lemuria",
        pairs: &[
            ("France", "Europe"),
            ("Germany", "Europe"),
            ("Japan", "Asia"),
            ("China", "Asia"),
            ("Egypt", "Africa"),
            ("Nigeria", "Africa"),
            ("India", "Asia"),
            ("Kenya", "Africa"),
            ("Spain", "Europe"),
        ],
    },
    Relation {
        wordings: ["The {} is located in the city of", "The city in which the {} stands is"],
        invented: "Newcastle upon Tyne",
        pairs: &[
            ("Eiffel Tower", "Paris"),
            ("Colosseum", "Rome"),
            ("Brandenburg Gate", "Berlin"),
            ("Kremlin", "Moscow"),
            ("Acropolis", "Athens"),
            ("Statue of Liberty", "New York"),
            ("Louvre", "Paris"),
        ],
    },
    Relation {
        wordings: ["The chemical symbol for {} is", "In the periodic table, the symbol of {} is"],
        invented: "Zq-17",
        pairs: &[
            ("gold", "Au"),
            ("silver", "Ag"),
            ("iron", "Fe"),
            ("oxygen", "O"),
            ("hydrogen", "H"),
            ("carbon", "C"),
        ],
    },
    Relation {
        wordings: ["The author of {} is", "The person who wrote {} is"],
        invented: "Ebenezer Blackwood-Thornton",
        pairs: &[
            ("Hamlet", "William Shakespeare"),
            ("War and Peace", "Leo Tolstoy"),
            ("Pride and Prejudice", "Jane Austen"),
            ("Oliver Twist", "Charles Dickens"),
            ("The Republic", "Plato"),
            ("On the Origin of Species", "Charles Darwin"),
        ],
    },
    Relation {
        wordings: ["The company that makes the {} is", "The {} is a product of the company"],
        invented: "Halvorsen & Sons Clockworks",
        pairs: &[
            ("iPhone", "Apple"),
            ("PlayStation", "Sony"),
            ("Xbox", "Microsoft"),
            ("Kindle", "Amazon"),
            ("Galaxy smartphone", "Samsung"),
            ("Corolla", "Toyota"),
        ],
    },
    Relation {
        wordings: ["The currency of {} is the", "In {} one pays with the"],
        invented: "imperial silver crown",
        pairs: &[
            ("Japan", "yen"),
            ("Russia", "ruble"),
            ("China", "yuan"),
            ("India", "rupee"),
            ("Mexico", "peso"),
            ("Germany", "euro"),
        ],
    },
];

/// Most neighbours that a trial edit should leave alone, of each kind.
const NEIGHBOURS: usize = 3;

/// Trial edits of facts that the model knows, at most `count`, relations in turn.
///
/// # Errors
/// Where the model has no tokenizer.
pub fn trials(model: &Model, count: usize) -> Result<Vec<Fact>> {
    // What the model knows: the object is its answer to the first wording.
    let mut texts = vec![];
    for relation in RELATIONS {
        for (subject, object) in relation.pairs {
            texts.push(Forced::new(model, &relation.wordings[0].replace("{}", subject), object)?);
        }
    }
    let asked: Vec<Asked<'_>> = texts.iter().map(|text| Asked { text, overlays: &[] }).collect();
    let predicted = predict(model, &asked)?;
    let mut right = texts.iter().zip(&predicted).map(|(t, p)| t.accuracy(p) == Some(1.0));
    let known: Vec<Vec<(&str, &str)>> = RELATIONS
        .iter()
        .map(|r| r.pairs.iter().copied().filter(|_| right.next() == Some(true)).collect())
        .collect();

    let longest = known.iter().map(Vec::len).max().unwrap_or(0);
    let turns = (0..longest).flat_map(|i| (0..RELATIONS.len()).map(move |r| (r, i)));
    let made = turns.filter_map(|(r, i)| trial(&known, r, i));
    Ok(made.take(count).collect())
}

/// The edit of the i-th known fact of a relation, to another's object or, for every second one, to an
/// invented one; `None` where there is no such fact, or no other object.
fn trial(known: &[Vec<(&str, &str)>], r: usize, i: usize) -> Option<Fact> {
    let (subject, object) = *known[r].get(i)?;
    let others = || known[r].iter().cycle().skip(i + 1).take(known[r].len() - 1);
    let known_one = others().find(|(_, o)| *o != object).map(|(_, o)| *o);
    let target = if (r + i).is_multiple_of(2) { known_one? } else { RELATIONS[r].invented };
    let mut fact = Fact::new(RELATIONS[r].wordings[0].replace("{}", subject), subject, target).ok()?;
    fact.ground_truth = Some(object.to_owned());
    fact.rephrases = vec![RELATIONS[r].wordings[1].replace("{}", subject)];
    let probe = |kind: &str, relation: &Relation, subject: &str, answer: &str| Probe {
        kind: kind.to_owned(),
        prompt: relation.wordings[0].replace("{}", subject),
        answers: vec![answer.to_owned()],
    };
    let same_relation = others().take(NEIGHBOURS).map(|(s, o)| probe("neighbour", &RELATIONS[r], s, o));
    let of_subject = known.iter().enumerate().filter(|(other, _)| *other != r).flat_map(|(other, pairs)| {
        pairs.iter().filter(|(s, _)| *s == subject).map(move |(s, o)| (other, *s, *o))
    });
    let same_subject =
        of_subject.take(NEIGHBOURS).map(|(other, s, o)| probe("same-subject", &RELATIONS[other], s, o));
    fact.locality = same_relation.chain(same_subject).collect();
    Some(fact)
}
