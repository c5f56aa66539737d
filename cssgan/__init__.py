import os

__version__ = "0.1.0"


def _name_the_user():
    "MONAI and PyTorch ask who the user is, and fail where the system does not know: in a container that runs under a bare number."
    if any(map(os.environ.get, ("LOGNAME", "USER", "LNAME", "USERNAME"))): return
    try:
        import pwd
        pwd.getpwuid(os.getuid())
    except ImportError: pass  # Windows always knows
    except KeyError: os.environ["LOGNAME"] = f"uid{os.getuid()}"


_name_the_user()
