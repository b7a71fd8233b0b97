"""What a user can get wrong. Each message is one line: where, what, and the mend."""


class ShopreelError(Exception):
    """The user's mistake: the command line prints it as one line and exits with 2."""


class ConfigError(ShopreelError):
    """An override, or a combination of settings, that makes no sense."""


class ContractError(ShopreelError):
    """A file that breaks the dataset, bundle or table contract: names file, column, row and mend."""
