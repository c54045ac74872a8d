"""What all parts of a spec have in common: unknown keys are refused, nothing changes, true is no number."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

from trainables.storage.remote import Place, as_place


def _place(value: Any) -> Any:
    return as_place(value) if isinstance(value, str) else value


# A folder, or the URL of one in an object store.
FolderOrUrl = Annotated[Place, BeforeValidator(_place)]


class Part(BaseModel):
    """A mapping of keys in a spec."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would read true as 1."""
        field = cls.model_fields[info.field_name or ""]
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool) and bool not in (field.annotation, *get_args(field.annotation)):
                raise ValueError(f"must not be true or false, got {value!r}")
        return value
