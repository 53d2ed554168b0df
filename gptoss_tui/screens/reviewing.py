"""What the review of a set-up leads to: its page, the start, a rehearsal before it, values from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from textual import on

from engine.plan.plan import Plan
from gptoss_tui import marks
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.review_text import ReviewPage, open_page, review_page
from gptoss_tui.screens.launching import Offer
from gptoss_tui.screens.planning import Planning
from gptoss_tui.widgets.review import Review

_MOST_TOLD = 4


class Reviewing(Planning):
    """Fills the review and carries out what is asked for there."""

    def settings_taken(self) -> None:
        """The draft took many values at once."""
        raise NotImplementedError

    @property
    def title_of_draft(self) -> str:
        return self.draft.name or "this set-up"

    def show_review(self) -> None:
        """Say how the set-up stands now, in the review."""
        plan = self.outcome
        if isinstance(plan, Plan):
            self.ask("review", partial(self._page, plan))
        elif plan is not None:
            self._with_review(partial(Review.show, plan=None, page=open_page(self.draft, self.points)))

    def _page(self, plan: Plan) -> tuple[Plan, ReviewPage]:
        return plan, review_page(self.draft, plan, self.points, self.cockpit.services.runs_root())

    def take_review_answer(self, answer: Answer) -> bool:
        """Take the page that was made; False when the answer is about something else."""
        if answer.name != "review":
            return False
        made = answer.value
        if isinstance(made, Failure):
            parts = [(f"✗ {made.message}", "bad"), (made.hint, "text")]
            self._with_review(partial(Review.show, plan=None, page=ReviewPage(parts=parts, files={})))
        elif made[0] is self.outcome:  # else the settings have changed meanwhile
            plan, page = made
            self._with_review(partial(Review.show, plan=plan, page=page))
        return True

    def _with_review(self, call: Callable[[Review], None]) -> None:
        """Call with the review as soon as it is there."""

        def call_all() -> None:
            for review in self.query(Review):
                call(review)

        self.call_after_refresh(call_all)

    @on(Review.LaunchWanted)
    def launch_wanted(self, event: Review.LaunchWanted) -> None:
        # What the checks have found may be mended meanwhile, or overruled: the offer checks anew.
        unanswered = [point for point in marks.points(self.draft, self.outcome, ()) if point.key.startswith(marks.OPEN)]
        if unanswered:
            told = [point.what + (f" → {point.fix}" if point.fix else "") for point in unanswered]
            self.notify("\n".join(told[:_MOST_TOLD]), title="Still to be mended", severity="error")
        elif isinstance(self.outcome, Plan):
            title = f"Start {self.title_of_draft}?"
            self.offer(Offer(settings=self.draft.settings, title=title, name=event.name))
        else:
            self.notify("The plan is still being made.", title="Not yet")

    @on(Review.RehearsalMade)
    def rehearsal_made(self, event: Review.RehearsalMade) -> None:
        made, title = event.rehearsal, f"Rehearse {self.title_of_draft}?"
        self.offer(Offer(settings=made.settings, title=title, notes=made.notes, is_rehearsal=True))

    @on(Review.Adopted)
    def adopted(self, event: Review.Adopted) -> None:
        self.notify(event.told)
        self.settings_taken()
