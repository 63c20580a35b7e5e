//! What EasyEdit measures only where it is asked to: its `eval_metric` (`ppl`, `ood_ppl`), and the
//! generation it scores GRACE by (`../shared/reference/easyedit.md` §1.7, 1.10).

use mutandis_engine::Result;

use super::likelihood::{known_share, target_perplexity};
use super::vanilla::Vanilla;
use super::{Forced, agreement};
use crate::edited::Edited;
use crate::question::{Question, scores};
use crate::results::{ProbeResult, Role, Scores};

/// A number of the peer's that its table does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extra {
    /// Perplexity of the target behind an edited prompt and its other wordings: `edit:ppl`.
    Ppl,
    /// Share of such a prompt's tokens whose probability is above 0.8: `edit:ood`.
    OodPpl,
    /// As many greedy tokens as the target has, compared with the target cut without the blank
    /// before it: `edit:vanilla`; of edited prompts also the F1 of the ids, `edit:vanilla-f1`.
    Vanilla,
}

impl Extra {
    /// What it is, in words.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Ppl => "ppl: exp of the mean −ln p of a target's tokens (:ppl)",
            Self::OodPpl => "ood-ppl: share of a prompt's tokens with a loss below −ln 0.8 (:ood)",
            Self::Vanilla => {
                "vanilla: as many greedy tokens as the target has, cut without the blank before it \
                 (:vanilla), and macro F1 of their ids (:vanilla-f1)"
            }
        }
    }

    /// Its parts: what goes behind the names of scores, and what goes behind those of a question's.
    fn parts(self) -> &'static [&'static str] {
        match self {
            Self::Ppl => &["ppl"],
            Self::OodPpl => &["ood"],
            Self::Vanilla => &["vanilla", "vanilla-f1"],
        }
    }

    /// One value for each of its parts.
    fn of(self, by: &Edited<'_>, was: &Edited<'_>, question: &Question) -> Result<[Option<f64>; 2]> {
        let Some(target) = question.first_answer() else { return Ok([None; 2]) };
        let is_edited = matches!(question.role, Role::Edit | Role::Rephrase);
        let prompt = by.prompt(&question.prompt);
        match self {
            Self::Ppl if is_edited => {
                let text = Forced::new(by.model, &prompt, target)?;
                Ok([target_perplexity(by.model, by.overlays, &[text])?, None])
            }
            Self::OodPpl if is_edited => {
                let ids = by.model.tokenizer()?.encode(&prompt)?.ids;
                Ok([known_share(by.model, by.overlays, &[ids])?, None])
            }
            Self::Ppl | Self::OodPpl => Ok([None; 2]),
            Self::Vanilla => {
                let said = Vanilla::new(by.model, by.overlays, &prompt, target)?;
                if question.role == Role::Locality {
                    let was = Vanilla::new(was.model, was.overlays, &was.prompt(&question.prompt), target)?;
                    return Ok([agreement(&said.said, &was.said), None]);
                }
                let f1 = (question.role == Role::Edit && !said.target.is_empty()).then(|| said.f1());
                Ok([said.accuracy(), f1])
            }
        }
    }
}

/// Scores of a record's questions by these measures; `probes` hears of each question's own.
///
/// # Errors
/// Where a text does not fit the model's context.
pub(crate) fn measure(
    extras: &[Extra],
    by: &Edited<'_>,
    questions: &[Question],
    probes: &mut [ProbeResult],
) -> Result<Scores> {
    let was = Edited::unedited(by.model);
    let mut all = Scores::new();
    for extra in extras {
        let found = questions.iter().map(|question| extra.of(by, &was, question));
        let found = found.collect::<Result<Vec<_>>>()?;
        for (at, part) in extra.parts().iter().enumerate() {
            all.extend(scores(questions, &format!(":{part}"), |i| found[i][at]));
            for (probe, own) in probes.iter_mut().zip(&found) {
                probe.scores.compat.extend(own[at].map(|score| ((*part).to_owned(), score)));
            }
        }
    }
    Ok(all)
}
