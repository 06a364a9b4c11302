from .ablation import AblationStudy as AblationStudy
from .ablation import ablation_study as ablation_study
from .digits import digits_transfer as digits_transfer
from .jobs import Job as Job
from .jobs import JobsFailedError as JobsFailedError
from .jobs import run_jobs as run_jobs
from .sample_efficiency import SampleEfficiency as SampleEfficiency
from .sample_efficiency import sample_efficiency as sample_efficiency
