import pytest

from sb3_sparse.simba.acting.written import WrittenPass


@pytest.fixture
def passes(monkeypatch):
    """The actions of compiled passes so far."""
    taken, act = [], WrittenPass.act

    def counted(self, *args):
        taken.append(act(self, *args))
        return taken[-1]

    monkeypatch.setattr(WrittenPass, "act", counted)
    return taken
