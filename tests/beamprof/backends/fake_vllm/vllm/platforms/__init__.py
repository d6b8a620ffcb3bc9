"""A CPU."""


class current_platform:  # noqa: N801 - vLLM's own name
    @staticmethod
    def is_cuda() -> bool:
        return False
