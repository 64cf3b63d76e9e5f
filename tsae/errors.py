"""What a user can get wrong, as exceptions whose message is one clear sentence."""


class UserError(Exception):
    """Something the user can put right; the message says what is wrong and what to do."""


class WorldError(UserError):
    """A world cannot be built or read: no hub, no text, wrong layer, foreign directory."""


class StoreError(UserError):
    """An activation store is truncated, foreign, of another version, or cannot be written."""


class CheckpointError(UserError):
    """A checkpoint is truncated, foreign, of another version, or of another world."""
